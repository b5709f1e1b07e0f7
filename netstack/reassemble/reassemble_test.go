package reassemble

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

var pods = [][2]string{{"10.244.1.10", "198.51.100.1"}, {"fd00::10", "2001:db8::1"}}

// udp returns an unfragmented packet with n bytes of data.
func udp(family int, pod byte, n int) []byte {
	src := netip.MustParseAddr(pods[family][0]).AsSlice()
	src[len(src)-1] = pod
	from, _ := netip.AddrFromSlice(src)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*7) + byte(i>>8) + pod
	}
	return netstacktest.Spec{
		Src: netip.AddrPortFrom(from, 1000), Dst: netip.AddrPortFrom(netip.MustParseAddr(pods[family][1]), 53), Proto: packet.UDP, Payload: data,
	}.IP()
}

// cut returns the fragments of a packet.
func cut(t testing.TB, ip []byte, mtu int, id uint32) (parts [][]byte) {
	packet.PutFragments(ip, mtu, id, make([]byte, mtu), func(f []byte) { parts = append(parts, bytes.Clone(f)) })
	return parts
}

func parse(t testing.TB, ip []byte) *packet.Packet {
	t.Helper()
	p := new(packet.Packet)
	if fault := p.ParseIP(ip); fault != packet.Good {
		t.Fatalf("fault %d", fault)
	}
	return p
}

// add adds parts and returns the packets that they complete.
func add(t testing.TB, table *Table, parts ...[]byte) (done [][]byte) {
	t.Helper()
	for _, f := range parts {
		table.Add(parse(t, f), parse(t, f).Tuple.Src, func(ip []byte) { done = append(done, bytes.Clone(ip)) })
	}
	return done
}

// same compares packets, except for the identification of IPv4, which only fragments have.
func same(a, b []byte) bool {
	if a[0]>>4 == 4 && len(a) == len(b) {
		a, b = bytes.Clone(a), bytes.Clone(b)
		copy(a[4:12], b[4:12])
	}
	return bytes.Equal(a, b)
}

func TestWhole(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for family := range pods {
		for _, n := range []int{1, 1500, 2000, 9000, 65507 - 20*family} {
			for _, mtu := range []int{1280, 1420, 1421} {
				table, ip := New(Options{Max: 4}), udp(family, 10, n)
				for round, order := range []func([][]byte){
					func([][]byte) {},
					slices.Reverse[[][]byte],
					func(parts [][]byte) {
						rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
					},
				} {
					parts := cut(t, ip, mtu, uint32(round))
					if len(parts) < 2 {
						continue
					}
					order(parts)
					got := add(t, table, parts...)
					if len(got) != 1 || !same(got[0], ip) {
						t.Fatalf("IPv%d, %d bytes, MTU %d, order %d: %d packets, or another one", 4+2*family, n, mtu, round, len(got))
					}
					if p := parse(t, got[0]); !p.ChecksumOK() || p.Frag != packet.NoFrag {
						t.Fatalf("IPv%d, %d bytes, MTU %d: a wrong packet", 4+2*family, n, mtu)
					}
				}
				if s := table.Stats(); s.Held != 0 {
					t.Errorf("%d incomplete packets are left", s.Held)
				}
			}
		}
	}
}

// TestCongestion: a packet has met congestion when any of its fragments has.
func TestCongestion(t *testing.T) {
	for family := range pods {
		for marked := range 3 {
			ip := udp(family, 10, 3000)
			if family == 0 {
				ip[1] = 2 // the ends support ECN
			} else {
				ip[1] |= 2 << 4
			}
			packet.PutLength(ip)
			parts := cut(t, ip, 1280, 7)
			if !packet.MarkCE(parts[marked]) {
				t.Fatal("a fragment cannot be marked")
			}
			done := add(t, New(Options{Max: 1}), parts...)
			if len(done) != 1 || !packet.HasCE(done[0]) || parse(t, done[0]).Frag != packet.NoFrag {
				t.Errorf("family %d, fragment %d is marked: got %d packets", family, marked, len(done))
			}
		}
	}
}

// IPv4 options, and IPv6 extension headers before the fragment header, are kept.
func TestHeaders(t *testing.T) {
	ip := udp(1, 10, 3000)
	parts := cut(t, ip, 1420, 7)
	options := []byte{44, 0, 1, 4, 0, 0, 0, 0} // destination options, padding, before a fragment
	for i, f := range parts {
		f = slices.Insert(f, 40, options...)
		f[6] = 60
		be := len(f) - 40
		f[4], f[5] = byte(be>>8), byte(be)
		parts[i] = f
	}
	got := add(t, New(Options{Max: 1}), parts...)
	if len(got) != 1 {
		t.Fatalf("%d packets", len(got))
	}
	p := parse(t, got[0])
	if p.Frag != packet.NoFrag || p.L4 != 48 || !p.ChecksumOK() || !bytes.Equal(p.IP[p.L4:], ip[40:]) {
		t.Errorf("the L4 header is at %d", p.L4)
	}
}

func TestTricks(t *testing.T) {
	for family, name := range []string{"IPv4", "IPv6"} {
		parts := cut(t, udp(family, 10, 4000), 1420, 7)
		other := cut(t, udp(family, 10, 4000), 1420, 7)
		other[1][len(other[1])-1]++
		overlapping := cut(t, udp(family, 10, 4000), 1400, 7)
		short := cut(t, udp(family, 10, 2000), 1420, 7)
		for what, c := range map[string]struct {
			parts [][]byte
			whole int
		}{
			"one twice":                        {[][]byte{parts[0], parts[1], parts[1], parts[2]}, 1},
			"all twice":                        {slices.Concat(parts, parts), 2},
			"twice and different":              {[][]byte{parts[1], other[1], parts[0], parts[2]}, 0},
			"overlapping":                      {[][]byte{parts[0], overlapping[1], parts[1], parts[2]}, 0},
			"an end before what is there":      {[][]byte{parts[2], short[1], parts[0], parts[1]}, 0},
			"an end before what is there, too": {[][]byte{short[1], parts[2], parts[0], parts[1]}, 0},
			"no first":                         {parts[1:], 0},
			"no last":                          {parts[:2], 0},
		} {
			if got := add(t, New(Options{Max: 4}), c.parts...); len(got) != c.whole {
				t.Errorf("%s, %s: %d packets, want %d", name, what, len(got), c.whole)
			}
		}
	}
}

func TestTooLate(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New(Options{Max: 4, Now: func() time.Time { return now }})
	parts := cut(t, udp(0, 10, 2000), 1420, 7)
	add(t, table, parts[0])
	now = now.Add(life + 1)
	if got := add(t, table, parts[1]); len(got) != 0 {
		t.Error("whole, though its first fragment is too old")
	}
	if got := add(t, table, parts[0]); len(got) != 1 {
		t.Error("not whole with the first fragment again")
	}
}

// A pod that never sends the last fragment loses only packets of its own.
func TestFairShares(t *testing.T) {
	table := New(Options{Max: 16})
	modest := cut(t, udp(0, 11, 2000), 1420, 1)
	add(t, table, modest[0])
	for id := range 1000 {
		add(t, table, cut(t, udp(0, 10, 2000), 1420, uint32(id))[0])
	}
	if got := add(t, table, modest[1]); len(got) != 1 {
		t.Error("another pod's packet was lost")
	}
	if got := add(t, table, cut(t, udp(0, 12, 2000), 1420, 1)...); len(got) != 1 {
		t.Error("a newcomer's packet was lost")
	}
	if s := table.Stats(); s.Held > 16 || s.TakenFromOwn < 900 {
		t.Errorf("%+v", s)
	}
}

// Every reassembled packet is one that was sent, whatever fragments come: the fragments of several packets are mixed,
// repeated, left out and in any order.
func FuzzAdd(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Add([]byte{5, 4, 3, 2, 1, 0, 0, 1, 2})
	var all [][]byte
	var wholes [][]byte
	for family := range pods {
		for id, n := range []int{1500, 2800, 4000} {
			ip := udp(family, 10, n)
			wholes = append(wholes, ip)
			all = append(all, cut(f, ip, 1420, uint32(id))...)
		}
	}
	f.Fuzz(func(t *testing.T, order []byte) {
		table := New(Options{Max: 3})
		for _, i := range order {
			for _, got := range add(t, table, all[int(i)%len(all)]) {
				if !slices.ContainsFunc(wholes, func(ip []byte) bool { return same(got, ip) }) {
					t.Fatalf("a packet of %d bytes that nobody sent", len(got))
				}
			}
		}
	})
}
