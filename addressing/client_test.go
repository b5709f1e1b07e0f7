package addressing

import (
	"net/netip"
	"testing"
)

func TestClient(t *testing.T) {
	for _, tt := range [][3]string{
		{"192.0.2.1", "192.0.2.1", "same"}, {"192.0.2.1", "192.0.2.2", ""}, {"192.0.2.1", "::ffff:192.0.2.1", "same"},
		{"2001:db8::1", "2001:db8::ffff:1:2:3", "same"}, {"2001:db8:0:1::1", "2001:db8:0:2::1", ""}, {"fe80::1%eth0", "fe80::2%eth1", "same"},
		{"::1", "127.0.0.1", ""},
	} {
		a, b := Client(netip.MustParseAddr(tt[0])), Client(netip.MustParseAddr(tt[1]))
		if !a.IsValid() || (a == b) != (tt[2] == "same") {
			t.Errorf("%s is charged to %s, %s to %s", tt[0], a, tt[1], b)
		}
	}
}
