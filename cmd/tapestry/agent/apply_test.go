package agent

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack"
)

func TestSeenAs(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	four := &netstack.Config{
		NodeAddrs: addrs("192.0.2.1"),
		Peers:     []netstack.PeerRoute{{Name: "n2", NodeAddrs: addrs("192.0.2.2", "2001:db8::2")}},
	}
	for name, c := range map[string]struct{ client, to, want string }{
		"a client outside":                 {"203.0.113.7:999", "10.244.1.5:80", "203.0.113.7:999"},
		"nobody in particular":             {"", "10.244.1.5:80", ""},
		"localhost":                        {"127.0.0.1:999", "10.244.1.5:80", "192.0.2.1:0"},
		"localhost, no address of its own": {"[::1]:999", "[fd00::5]:80", ""},
		"to the host of another node":      {"203.0.113.7:999", "192.0.2.2:80", ""},
		"the node to another's host":       {"192.0.2.1:999", "192.0.2.2:80", ""},
		"localhost to another's host":      {"[::1]:999", "[2001:db8::2]:80", ""},
	} {
		t.Run(name, func(t *testing.T) {
			parse := func(s string) (a netip.AddrPort) {
				if s != "" {
					a = netip.MustParseAddrPort(s)
				}
				return a
			}
			if got := seenAs(four, parse(c.client), parse(c.to)); got != parse(c.want) {
				t.Errorf("seen as %v, want %q", got, c.want)
			}
		})
	}
}
