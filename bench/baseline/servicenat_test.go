package baseline

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// The measured Service has TCP and UDP and stands in the middle. No two Services share an address.
func TestLoadedServices(t *testing.T) {
	endpoints := []netip.AddrPort{netip.MustParseAddrPort("198.18.2.2:5201"), netip.MustParseAddrPort("198.18.2.3:5201")}
	for _, tc := range []struct{ n, at int }{{1, 0}, {2, 1}, {1000, 500}, {maxServices, maxServices / 2}} {
		services := loadedServices(tc.n, serviceFrontend, endpoints)
		if len(services) != tc.n+1 {
			t.Fatalf("%d: %d ports, want %d", tc.n, len(services), tc.n+1)
		}
		for i, protocol := range []string{"tcp", "udp"} {
			if s := services[tc.at+i]; s.frontend != serviceFrontend || s.protocol != protocol || !slices.Equal(s.endpoints, endpoints) {
				t.Errorf("%d: at %d stands %+v", tc.n, tc.at+i, s)
			}
		}
		frontends, hashes := map[netip.AddrPort]bool{}, map[string]bool{}
		for _, s := range services {
			frontends[s.frontend], hashes[s.hash()] = true, true
		}
		if len(frontends) != tc.n || len(hashes) != tc.n+1 {
			t.Errorf("%d: %d frontends and %d names", tc.n, len(frontends), len(hashes))
		}
	}
}

func TestRules(t *testing.T) {
	service := servicePort{
		name: "web", protocol: "tcp", frontend: netip.MustParseAddrPort("10.96.0.1:80"),
		endpoints: []netip.AddrPort{netip.MustParseAddrPort("198.18.2.2:8080"), netip.MustParseAddrPort("198.18.2.3:8080")},
	}
	for _, tc := range []struct {
		name  string
		write func(servicePort, *strings.Builder)
		want  string
	}{
		{"iptables", servicePort.iptables, `
:KUBE-SVC-WEB-T - [0:0]
:KUBE-SEP-WEB-T-0 - [0:0]
:KUBE-SEP-WEB-T-1 - [0:0]
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-WEB-T
-A KUBE-SVC-WEB-T ! -s 198.18.0.0/15 -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB-T -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-WEB-T-0
-A KUBE-SEP-WEB-T-0 -s 198.18.2.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB-T-0 -p tcp -m tcp -j DNAT --to-destination 198.18.2.2:8080
-A KUBE-SVC-WEB-T -j KUBE-SEP-WEB-T-1
-A KUBE-SEP-WEB-T-1 -s 198.18.2.3/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB-T-1 -p tcp -m tcp -j DNAT --to-destination 198.18.2.3:8080
`},
		{"nftables", servicePort.nftables, `
add chain ip kube-proxy service-WEB-T
add rule ip kube-proxy service-WEB-T ip daddr 10.96.0.1 tcp dport 80 ip saddr != 198.18.0.0/15 jump mark-for-masquerade
add chain ip kube-proxy endpoint-WEB-T-0
add rule ip kube-proxy endpoint-WEB-T-0 ip saddr 198.18.2.2 jump mark-for-masquerade
add rule ip kube-proxy endpoint-WEB-T-0 meta l4proto tcp dnat to 198.18.2.2:8080
add chain ip kube-proxy endpoint-WEB-T-1
add rule ip kube-proxy endpoint-WEB-T-1 ip saddr 198.18.2.3 jump mark-for-masquerade
add rule ip kube-proxy endpoint-WEB-T-1 meta l4proto tcp dnat to 198.18.2.3:8080
add rule ip kube-proxy service-WEB-T numgen random mod 2 vmap { 0 : goto endpoint-WEB-T-0, 1 : goto endpoint-WEB-T-1 }
`},
	} {
		var b strings.Builder
		tc.write(service, &b)
		if got := "\n" + b.String(); got != tc.want {
			t.Errorf("%s: got%s", tc.name, got)
		}
	}
}

func TestServiceNATRefuses(t *testing.T) {
	for _, n := range []int{0, maxServices + 1} {
		if _, err := ServiceNAT(IPTables, n); err == nil || !strings.Contains(err.Error(), "expected 1 to 65536") {
			t.Errorf("%d Services: %v", n, err)
		}
	}
	if _, err := ServiceNAT("ipvs", 1); err == nil || !strings.Contains(err.Error(), `mode "ipvs"`) {
		t.Errorf("another mode: %v", err)
	}
}
