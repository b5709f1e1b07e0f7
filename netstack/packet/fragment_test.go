package packet

import (
	"bytes"
	"testing"
)

// reassemble joins fragments as in RFC 791 3.2; all of them are there, in any order.
func reassemble(t *testing.T, parts [][]byte) []byte {
	t.Helper()
	var data []byte
	var first []byte
	total := -1
	for _, ip := range parts {
		p := mustParseIP(t, ip)
		hl := int(ip[0]&15) * 4
		off := int(be.Uint16(ip[6:])&0x1fff) * 8
		if off == 0 {
			first = ip[:hl]
		}
		if be.Uint16(ip[6:])&0x2000 == 0 {
			total = off + len(p.IP) - hl
		}
		if need := off + len(p.IP) - hl; need > len(data) {
			data = append(data, make([]byte, need-len(data))...)
		}
		copy(data[off:], p.IP[hl:])
	}
	if total != len(data) || first == nil {
		t.Fatalf("%d bytes, the last fragment ends at %d", len(data), total)
	}
	ip := append(bytes.Clone(first), data...)
	be.PutUint16(ip[2:], uint16(len(ip)))
	be.PutUint16(ip[6:], 0)
	slowIPChecksum(ip[:len(first)])
	return ip
}

func fragments(t *testing.T, p *Packet, mtu int) (parts [][]byte) {
	t.Helper()
	p.Fragment(mtu, make([]byte, mtu), func(ip []byte) {
		if len(ip) > mtu {
			t.Fatalf("fragment of %d bytes, MTU %d", len(ip), mtu)
		}
		parts = append(parts, bytes.Clone(ip))
	})
	return parts
}

func TestFragment(t *testing.T) {
	for _, n := range []int{0, 100, 1472, 1473, 2952, 8000, 65507} {
		for _, mtu := range []int{68, 576, 1499, 1500} {
			s := spec{src: podA4, dst: podB4, proto: UDP, sport: 1, dport: 2, payload: pattern(n), id: 9, class: 4}
			whole := s.ip()
			parts := fragments(t, mustParse(t, s.super(0)), mtu)
			if want := (8 + n + (mtu-20)&^7 - 1) / ((mtu - 20) &^ 7); len(whole) > mtu && len(parts) != want || len(whole) <= mtu && len(parts) != 1 {
				t.Errorf("%d bytes, MTU %d: %d fragments", n, mtu, len(parts))
			}
			if got := reassemble(t, parts); !bytes.Equal(got, whole) {
				t.Errorf("%d bytes, MTU %d: the reassembled packet differs", n, mtu)
			}
			// Fragments may have to be cut once more.
			var again [][]byte
			for _, ip := range parts {
				again = append(again, fragments(t, mustParseIP(t, ip), 68)...)
			}
			if got := reassemble(t, again); !bytes.Equal(got, whole) {
				t.Errorf("%d bytes, MTU %d then 68: the reassembled packet differs", n, mtu)
			}
		}
	}
}

func TestFragmentOptions(t *testing.T) {
	// No-operation, record route (in the first fragment only), stream id (copied), end.
	opts := []byte{1, 7, 7, 4, 0, 0, 0, 0, 0x88, 4, 1, 2}
	s := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(500), ipOpts: opts}
	parts := fragments(t, mustParseIP(t, s.ip()), 200)
	if got := reassemble(t, parts); !bytes.Equal(got, s.ip()) {
		t.Error("the reassembled packet differs")
	}
	for i, ip := range parts {
		want := opts
		if i > 0 {
			want = []byte{1, 1, 1, 1, 1, 1, 1, 1, 0x88, 4, 1, 2}
		}
		if !bytes.Equal(ip[20:32], want) {
			t.Errorf("options of fragment %d: % x, want % x", i, ip[20:32], want)
		}
	}
}

func TestFragmentRefuses(t *testing.T) {
	udp := spec{src: podA4, dst: podB4, proto: UDP, payload: pattern(3000)}
	df := udp
	df.frag = 0x4000
	tests := map[string]struct {
		p   *Packet
		mtu int
	}{
		"DF":         {mustParseIP(t, df.ip()), 1500},
		"IPv6":       {mustParseIP(t, spec{src: podA6, dst: podB6, proto: UDP, payload: pattern(3000)}.ip()), 1500},
		"superframe": {mustParse(t, udp.super(1000)), 1500},
		"tiny MTU":   {mustParseIP(t, udp.ip()), 27},
	}
	for name, tt := range tests {
		if got := fragments(t, tt.p, tt.mtu); len(got) != 0 {
			t.Errorf("%s: %d fragments", name, len(got))
		}
	}
}
