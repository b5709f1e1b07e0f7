package packet

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// cutUp returns the pieces of ip, each of which must be a good packet of at most mtu bytes.
func cutUp(t testing.TB, ip []byte, outer, mtu int, id uint32) (parts [][]byte) {
	t.Helper()
	var c Cutter
	dst := make([]byte, 65535)
	if !c.Reset(ip, outer, mtu, id) {
		return nil
	}
	for n := c.Next(dst); n > 0; n = c.Next(dst) {
		if n > mtu {
			t.Fatalf("a piece of %d bytes, MTU %d", n, mtu)
		}
		parts = append(parts, bytes.Clone(dst[:n]))
	}
	return parts
}

// joinSlowly puts the fragments of an IPv6 packet together as in RFC 8200 4.5. all of them are there, in any order.
func joinSlowly(t testing.TB, parts [][]byte) []byte {
	t.Helper()
	var head, data []byte
	total := -1
	for _, ip := range parts {
		next, at := 6, 40
		for ip[next] != extFragment {
			next, at = at, at+8*(int(ip[at+1])+1)
		}
		word := int(be.Uint16(ip[at+2:]))
		off, body := word&^7, ip[at+8:]
		if off == 0 {
			head = bytes.Clone(ip[:at])
			head[next] = ip[at]
		}
		if word&1 == 0 {
			total = off + len(body)
		}
		if need := off + len(body); need > len(data) {
			data = append(data, make([]byte, need-len(data))...)
		}
		copy(data[off:], body)
	}
	if total != len(data) || head == nil {
		t.Fatalf("%d bytes, and the last fragment ends at %d", len(data), total)
	}
	be.PutUint16(head[4:], uint16(len(head)+len(data)-40))
	return append(head, data...)
}

// Extension headers of 8 and 16 bytes, as they follow one another in a packet.
var (
	hopByHop = []byte{0, 0, 1, 4, 0, 0, 0, 0}
	routing  = []byte{0, 0, 0, 0, 0, 0, 0, 0}
	destOpts = []byte{0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
)

// extended returns a UDP packet of n bytes with extension headers of these kinds.
func extended(n int, kinds ...uint8) []byte {
	s := spec{src: podA6, dst: podB6, proto: UDP, sport: 1, dport: 2, class: 0xa4}
	for i, k := range kinds {
		h := bytes.Clone(map[uint8][]byte{extHopByHop: hopByHop, extRouting: routing, extDestOpts: destOpts}[k])
		if i == 0 {
			s.extFirst = k
		} else {
			s.ext[s.extLast] = k
		}
		s.extLast = len(s.ext)
		s.ext = append(s.ext, h...)
	}
	s.payload = pattern(n - 48 - len(s.ext))
	return s.ip()
}

func TestCutter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	via4 := Encap{Src: addr("10.1.0.1"), Dst: addr("10.2.0.1")}
	via6 := Encap{Src: addr("fd00:1::1"), Dst: addr("fd00:2::1")}
	for name, kinds := range map[string][]uint8{
		"plain": nil, "hop by hop": {extHopByHop}, "options": {extDestOpts}, "routing": {extHopByHop, extDestOpts, extRouting, extDestOpts},
	} {
		for outer, via := range map[int]*Encap{0: nil, 20: &via4, 40: &via6} {
			for _, size := range []int{200, 1241, 1279, 1280} {
				for range 20 {
					mtu := 190 + outer + rnd.IntN(size-150)
					ip := make([]byte, outer, outer+size)
					ip = append(ip, extended(size, kinds...)...)
					if via != nil {
						putOuter(ip, outer, via)
					}
					whole := bytes.Clone(ip)
					parts := cutUp(t, ip, outer, mtu, 77)
					if !bytes.Equal(ip, whole) {
						t.Fatal("the packet was changed")
					}
					if len(parts) < 1 || len(parts) > (size+mtu-outer)/(mtu-outer-110) {
						t.Fatalf("%s, %d+%d bytes, MTU %d: %d pieces", name, outer, size, mtu, len(parts))
					}
					for i, part := range parts {
						if via != nil {
							in, got, ok := Decap(part)
							if !ok || got != *via {
								t.Fatalf("%s: piece %d has another outer header", name, i)
							}
							parts[i] = in
						}
						p := mustParseIP(t, parts[i])
						if !IsCut(parts[i]) || p.FragID != 77 && len(parts) > 1 {
							t.Fatalf("%s: piece %d is not recognised, ID %d", name, i, p.FragID)
						}
						p.ClearCutMark()
						if IsCut(parts[i]) {
							t.Fatalf("%s: a cleared mark", name)
						}
					}
					if got := joinSlowly(t, parts); !bytes.Equal(got, whole[outer:]) {
						t.Fatalf("%s, %d+%d bytes, MTU %d: joined, it is another packet", name, outer, size, mtu)
					}
				}
			}
		}
	}
}

// Fragments of a sender are cut into smaller fragments of the same packet, which its receiver joins and no node on the
// way does.
func TestCutFragments(t *testing.T) {
	for _, kinds := range [][]uint8{nil, {extHopByHop, extDestOpts}} {
		whole := extended(4000, kinds...)
		var parts [][]byte
		for _, f := range cutUp(t, whole, 0, 1280, 5) {
			mustParseIP(t, f).ClearCutMark()
			again := cutUp(t, f, 0, 700, 99)
			if len(again) != 2 && len(f) > 700 {
				t.Errorf("a fragment of %d bytes in %d pieces", len(f), len(again))
			}
			parts = append(parts, again...)
		}
		for _, f := range parts {
			if p := mustParseIP(t, f); p.FragID != 5 || IsCut(f) {
				t.Errorf("a fragment of a fragment has the identification %d, marked %v", p.FragID, IsCut(f))
			}
		}
		slices.Reverse(parts)
		if !bytes.Equal(joinSlowly(t, parts), whole) {
			t.Error("joined, it is another packet")
		}
	}
}

func TestCannotBeCut(t *testing.T) {
	for name, ip := range map[string][]byte{
		"no header": make([]byte, 39), "no data": extended(1000)[:40], "headers cut off": extended(100, extHopByHop)[:44],
		"a fragment header cut off": func() []byte { ip := extended(100); ip[6] = extFragment; return ip[:44] }(),
	} {
		if new(Cutter).Reset(ip, 0, 600, 1) {
			t.Errorf("%s: it can be cut", name)
		}
	}
	if new(Cutter).Reset(extended(1000), 0, 55, 1) {
		t.Error("an MTU of 55 bytes has room for data")
	}
}

// FuzzCut: whatever a packet is, IsCut and a Cutter survive it, and pieces of a packet that the parser takes can be
// joined again.
func FuzzCut(f *testing.F) {
	f.Add(extended(1280), uint16(600))
	f.Add(extended(1280, extHopByHop, extDestOpts, extRouting, extDestOpts), uint16(300))
	f.Add(cutUp(f, extended(2000), 0, 1280, 5)[1], uint16(600))
	f.Fuzz(func(t *testing.T, ip []byte, mtu uint16) {
		IsCut(ip)
		var p Packet
		if len(ip) > 9000 || p.ParseIP(ip) != Good || p.EtherType != EtherIPv6 {
			return
		}
		whole := bytes.Clone(p.IP)
		parts := cutUp(t, p.IP, 0, int(mtu), 9)
		if len(parts) == 0 || p.fragAt != 0 {
			return
		}
		if !bytes.Equal(joinSlowly(t, parts), whole) {
			t.Error("joined, it is another packet")
		}
	})
}
