package exit

import (
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

func TestOf(t *testing.T) {
	table := New(Config{Routed: addresstest.Prefixes("192.0.2.0/24", "198.51.100.7/32", "10.0.0.0/8", "2001:db8::/32", "2001:db8:1::/48")})
	for addr, want := range map[string]Way{
		"192.0.2.0": HostTAP, "192.0.2.255": HostTAP, "192.0.3.0": Sockets, "198.51.100.7": HostTAP, "198.51.100.8": Sockets,
		"10.255.0.1": HostTAP, "11.0.0.1": Sockets, "2001:db8:1::1": HostTAP, "2001:db8:ffff::": HostTAP, "2001:db9::": Sockets,
		"::192.0.2.1": Sockets, "8.8.8.8": Sockets,
	} {
		a := packet.AddrFrom(netip.MustParseAddr(addr))
		if got := table.Of(a); got != want {
			t.Errorf("%s: way %d, want %d", addr, got, want)
		}
		if n := testing.AllocsPerRun(10, func() { table.Of(a) }); n != 0 {
			t.Errorf("%s: %v allocations", addr, n)
		}
	}
	if New(Config{}) != nil || (*Table)(nil).Of(packet.Addr{}) != Sockets {
		t.Error("without ranges everything leaves over sockets")
	}
	if all := New(Config{Routed: addresstest.Prefixes("0.0.0.0/0")}); all.Of(packet.AddrFrom(netip.MustParseAddr("8.8.8.8"))) != HostTAP || all.Of(packet.AddrFrom(netip.MustParseAddr("2001:db8::1"))) != Sockets {
		t.Error("0.0.0.0/0 is all of IPv4, and nothing of IPv6")
	}
	if all := New(Config{Routed: addresstest.Prefixes("::/0", "10.0.0.0/8")}); all.Of(packet.AddrFrom(netip.MustParseAddr("8.8.8.8"))) != Sockets ||
		all.Of(packet.AddrFrom(netip.MustParseAddr("10.0.0.1"))) != HostTAP || all.Of(packet.AddrFrom(netip.MustParseAddr("2001:db8::1"))) != HostTAP {
		t.Error("::/0 is all of IPv6, and nothing of IPv4")
	}
}
