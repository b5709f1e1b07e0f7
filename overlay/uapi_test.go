package overlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestDelta(t *testing.T) {
	k1, k2 := PublicKey{1}, PublicKey{2}
	pre, ep := netip.MustParsePrefix, netip.MustParseAddrPort
	peer := func(e string, prefixes ...string) Peer {
		var p Peer
		if e != "" {
			p.Endpoint = ep(e)
		}
		for _, s := range prefixes {
			p.Prefixes = append(p.Prefixes, pre(s))
		}
		return p
	}
	type peers = map[PublicKey]Peer
	for _, c := range []struct {
		name      string
		old, want peers
		steps     string
	}{
		{"nothing", nil, nil, ""},
		{"add", nil, peers{k1: peer("192.0.2.1:5", "10.0.1.0/24", "fd00::/64")}, "1 endpoint=192.0.2.1:5 allowed_ip=10.0.1.0/24 allowed_ip=fd00::/64"},
		{"add one that speaks first", nil, peers{k1: peer("")}, "1"},
		{"same", peers{k1: peer("192.0.2.1:5", "10.0.1.0/24")}, peers{k1: peer("192.0.2.1:5", "10.0.1.0/24")}, ""},
		{"remove", peers{k1: peer("", "10.0.1.0/24")}, nil, "1 remove=true"},
		{"moved", peers{k1: peer("192.0.2.1:5")}, peers{k1: peer("192.0.2.9:5")}, "1 endpoint=192.0.2.9:5"},
		{"endpoint forgotten stays where it is", peers{k1: peer("192.0.2.1:5")}, peers{k1: peer("")}, ""},
		{"prefix changed", peers{k1: peer("", "10.0.1.0/24")}, peers{k1: peer("", "10.0.2.0/24")},
			"1 update_only=true allowed_ip=-10.0.1.0/24 1 allowed_ip=10.0.2.0/24"},
		{"prefix changes hands", peers{k1: peer("", "10.0.1.0/24"), k2: peer("", "10.0.2.0/24")},
			peers{k1: peer("", "10.0.2.0/24"), k2: peer("", "10.0.1.0/24")},
			"1 update_only=true allowed_ip=-10.0.1.0/24 2 update_only=true allowed_ip=-10.0.2.0/24 " +
				"1 allowed_ip=10.0.2.0/24 2 allowed_ip=10.0.1.0/24"},
		{"key changes", peers{k1: peer("", "10.0.1.0/24")}, peers{k2: peer("", "10.0.1.0/24")},
			"1 remove=true 2 allowed_ip=10.0.1.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := delta(c.old, c.want)
			for i, k := range []PublicKey{k1, k2} {
				got = strings.ReplaceAll(got, fmt.Sprintf("public_key=%x", k[:]), fmt.Sprint(i+1))
			}
			if got = strings.Join(strings.Fields(got), " "); got != c.steps {
				t.Errorf("steps %q, want %q", got, c.steps)
			}
		})
	}
}

func TestParseSessions(t *testing.T) {
	text := fmt.Sprintf("private_key=%064x\nlisten_port=7\npublic_key=%064x\nendpoint=[fd00::1]:9\n"+
		"last_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=7\nrx_bytes=8\nsomething_new=1\n"+
		"public_key=%064x\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n", 9, 1, 2)
	got := parseSessions([]byte(text))
	one := session{netip.MustParseAddrPort("[fd00::1]:9"), time.Unix(5, 6), 8, 7}
	if len(got) != 2 || got[PublicKey{31: 1}] != one || got[PublicKey{31: 2}] != (session{}) {
		t.Errorf("sessions %+v", got)
	}
}
