package baseline

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/bench"
)

// The zone parses and has as many names as asked for. The measured name is among them.
func TestZoneFile(t *testing.T) {
	for _, n := range []int{1, 2, 1000} {
		var names []string
		parser := dns.NewZoneParser(strings.NewReader(zoneFile(n)), "", "zone")
		for record, ok := parser.Next(); ok; record, ok = parser.Next() {
			if a, isA := record.(*dns.A); isA && a.Hdr.Name != "ns.dns.cluster.local." {
				names = append(names, a.Hdr.Name)
				if addr, _ := netip.AddrFromSlice(a.A.To4()); !netip.MustParsePrefix("10.96.0.0/15").Contains(addr) || a.Hdr.Ttl != 5 {
					t.Errorf("%v", a)
				}
			}
		}
		if err := parser.Err(); err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		if all := len(names); all != n || len(slices.Compact(names)) != n || !slices.Contains(names, bench.DNSName+".") {
			t.Errorf("%d: %d names", n, all)
		}
	}
	if _, err := CoreDNS(0); err == nil || !strings.Contains(err.Error(), "expected 1 to 65536") {
		t.Errorf("no names: %v", err)
	}
}
