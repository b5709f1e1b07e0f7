package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// optionsOf are the options of segments by name, with where the four octets are that a server says of itself, and those
// that are said to it. Sequence numbers are told from clocks by clocks.
var optionsOf = map[string]struct {
	raw              []byte
	from, to, clocks []int
}{
	"none":       {},
	"timestamps": {timestamps, []int{4}, []int{8}, []int{4, 8}},
	"at an odd place": {
		[]byte{1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7, 0}, []int{3}, []int{7}, []int{3, 7},
	},
	"with blocks": {
		append(timestamps[:12:12], 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 1), []int{4}, []int{8, 15, 19, 23, 27}, []int{4, 8},
	},
	"of an opening":  {[]byte{2, 4, 5, 0x64, 4, 2, 8, 10, 9, 9, 9, 9, 0, 0, 0, 0, 1, 3, 3, 7}, []int{8}, []int{12}, []int{8, 12}},
	"after an end":   {[]byte{0, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7, 0}, nil, nil, nil},
	"too short":      {[]byte{8, 9, 0, 1, 2, 3, 4, 5, 6, 1, 1, 1}, nil, nil, nil},
	"beyond its end": {[]byte{1, 1, 1, 1, 1, 1, 8, 10, 1, 2, 3, 4}, nil, nil, nil},
	"no length":      {[]byte{8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1}, nil, nil, nil},
}

// TestShift: a segment has the numbers that it is to have, and a right checksum, as when it were made with them.
func TestShift(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	families(t, func(t *testing.T, a, b string) {
		for name, o := range optionsOf {
			for _, flags := range []uint8{ACK | PSH, RST} {
				for _, partial := range []bool{false, true} {
					s := spec{src: a, dst: b, proto: TCP, sport: 40000, dport: 80, seq: r.Uint32(), ack: r.Uint32(), flags: flags, tcpOpts: o.raw, payload: pattern(9)}
					by := Shift{Seq: r.Uint32(), Clock: r.Uint32()}
					for _, toServer := range []bool{false, true} {
						buf := frame(VNetHdr{}, s.ip())
						if partial {
							buf = s.super(0)
						}
						p := mustParse(t, buf)
						want := bytes.Clone(p.IP)
						head, sign, at, places := want[p.L4:], uint32(1), 4, o.from
						if toServer {
							sign, at, places = ^uint32(0), 8, o.to
						}
						if flags&ACK != 0 || !toServer {
							be.PutUint32(head[at:], be.Uint32(head[at:])+sign*by.Seq)
							for _, i := range places {
								n := by.Seq
								for _, c := range o.clocks {
									if c == i {
										n = by.Clock
									}
								}
								be.PutUint32(head[20+i:], be.Uint32(head[20+i:])+sign*n)
							}
						}
						if !partial {
							slowL4Checksum(want, p.L4, TCP)
						}
						if toServer {
							p.ToServer(by)
						} else {
							p.FromServer(by)
						}
						if !bytes.Equal(p.IP, want) {
							t.Fatalf("%s, partial %v, to the server %v, by %+v:\ngot  % x\nwant % x", name, partial, toServer, by, p.IP, want)
						}
						if again := mustParseIP(t, p.IP); again.Segment() != p.Segment() {
							t.Fatalf("%s: it says %+v and is %+v", name, p.Segment(), again.Segment())
						}
					}
				}
			}
		}
	})
}

func TestTerms(t *testing.T) {
	whole := Terms{Seq: 77, Clock: 0x01020304, MSS: 1380, Scale: 8, SACK: true, Times: true}
	for name, c := range map[string]struct {
		opts []byte
		want Terms
	}{
		"all":               {[]byte{2, 4, 5, 0x64, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7}, whole},
		"none":              {nil, Terms{Seq: 77}},
		"a scale of 0":      {[]byte{1, 3, 3, 0}, Terms{Seq: 77, Scale: 1}},
		"something else":    {[]byte{30, 4, 0, 0}, Terms{Seq: 77, Other: true}},
		"of another length": {[]byte{3, 4, 7, 7}, Terms{Seq: 77, Other: true}},
	} {
		p := mustParseIP(t, spec{src: podA4, dst: podB4, proto: TCP, seq: 77, flags: SYN | ACK, tcpOpts: c.opts}.ip())
		if got := p.Terms(); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	other := Terms{Seq: 5, Clock: 0x01020300, MSS: 1460, Scale: 8, SACK: true, Times: true}
	if by, ok := whole.Shift(other); !ok || by != (Shift{Seq: 72, Clock: 4}) {
		t.Errorf("by %+v, %v", by, ok)
	}
	for name, change := range map[string]func(*Terms){
		"a smaller segment": func(u *Terms) { u.MSS = 1379 }, "another scale": func(u *Terms) { u.Scale = 7 }, "no blocks": func(u *Terms) { u.SACK = false },
		"no timestamps": func(u *Terms) { u.Times = false }, "ECN": func(u *Terms) { u.ECN = true }, "more": func(u *Terms) { u.Other = true },
	} {
		u := other
		if change(&u); u != other {
			if _, ok := whole.Shift(u); ok {
				t.Errorf("%s: a client can be served so", name)
			}
		}
	}
}
