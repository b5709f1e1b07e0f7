package dns

import (
	"strings"
	"testing"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// A Service or an endpoint may have a name that fits no message. A client that asks for it gets an error and need not
// wait.
func TestUnwritableNames(t *testing.T) {
	long := strings.Repeat("a", 64)
	var c Config
	externals := map[string]string{
		"label": long + ".example.com", "name": strings.Repeat("abcdefgh.", 40) + "com", "empty-label": "a..example.com",
		"in-zone": long + ".default.svc.cluster.local", "escape": `a\`,
	}
	for name, to := range externals {
		c.Services = append(c.Services, &Service{Namespace: "d", Name: name, ExternalName: to})
	}
	c.Services = append(c.Services, &Service{
		Namespace: "d", Name: "pods", Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}},
		Endpoints: []Endpoint{{Addr: addresstest.Addrs("10.244.1.5")[0], Hostname: long, Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}}}},
	})
	s := New(Options{})
	s.Set(c)
	addr := start(t, s)
	for _, network := range []string{"udp", "tcp"} {
		for name := range externals {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeCNAME} {
				if got := ask(t, addr, network, name+".d.svc.cluster.local.", qtype); got.Rcode != dns.RcodeServerFailure {
					t.Errorf("%s %s %s: got %s", network, name, dns.TypeToString[qtype], dns.RcodeToString[got.Rcode])
				}
			}
		}
		if got := ask(t, addr, network, "_http._tcp.pods.d.svc.cluster.local.", dns.TypeSRV); got.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: SRV: got %v", network, got)
		}
		if got := ask(t, addr, network, "pods.d.svc.cluster.local.", dns.TypeA); len(got.Answer) != 1 {
			t.Errorf("%s: got %v", network, got)
		}
	}
}
