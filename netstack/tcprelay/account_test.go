package tcprelay

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

func TestBounds(t *testing.T) {
	greedy, modest := packet.Addr{15: 1}, packet.Addr{15: 2}
	b := newBounds(100, 1000)
	var held []*account
	for {
		a := b.begin(greedy)
		if a == nil {
			break
		}
		held = append(held, a)
		if len(held)%2 == 0 {
			a.opened()
		}
	}
	if n := len(held); n != 50 {
		t.Errorf("one who wants all has %d connections of 100", n)
	}
	var others []*account
	for range 10 {
		a := b.begin(modest)
		if a == nil {
			t.Fatalf("another one has only %d", len(others))
		}
		a.opened()
		others = append(others, a)
	}
	if s := b.stats(); s.Conns != 60 || s.Opening != 25 || s.Owners != 2 || s.Most != 50 || s.Refused != 1 {
		t.Errorf("%+v", s)
	}
	for i, a := range held {
		a.end(i%2 == 1)
	}
	for _, a := range others {
		a.end(true)
	}
	if s := b.stats(); s.Conns != 0 || s.Opening != 0 || s.Owners != 0 {
		t.Errorf("left: %+v", s)
	}
}

func TestBytes(t *testing.T) {
	b := newBounds(100, 1000)
	greedy, modest := b.begin(packet.Addr{15: 1}), b.begin(packet.Addr{15: 2})
	n := 0
	for greedy.take(10) {
		n += 10
	}
	if n != 500 {
		t.Errorf("one who wants all has %d bytes of 1000", n)
	}
	if !modest.take(200) || modest.take(200) {
		t.Error("another one gets more than is left to others, or not as much")
	}
	greedy.give(n)
	modest.give(200)
	if s := b.stats(); s.Bytes != 0 {
		t.Errorf("left: %+v", s)
	}
}

func TestNetwork(t *testing.T) {
	v4, v6 := packet.Addr{10: 0xff, 11: 0xff, 12: 203, 15: 7}, packet.Addr{0: 0x20, 1: 1, 7: 9, 15: 7}
	if got := Network(v4); got != v4 {
		t.Errorf("%s is of %s", v4, got)
	}
	if got, want := Network(v6), (packet.Addr{0: 0x20, 1: 1, 7: 9}); got != want {
		t.Errorf("%s is of %s", v6, got)
	}
}

// What was granted before is charged again and not decided again, whatever the order, but for what is beyond the
// bound.
func TestBoundsResume(t *testing.T) {
	one, two, three := packet.Addr{15: 1}, packet.Addr{15: 2}, packet.Addr{15: 3}
	type part struct {
		owner      packet.Addr
		n, opening int
	}
	for _, c := range []struct {
		name                string
		max                 int
		parts               []part
		conns, opening, all int
	}{
		{"one owner", 10_000, []part{{one, 3000, 0}}, 3000, 0, 3000},
		{"more than may be opening", 10_000, []part{{one, 3000, 0}, {two, 2000, 100}, {three, 1000, 0}}, 6000, 100, 6000},
		{"the largest comes last", 8, []part{{two, 2, 0}, {one, 4, 0}}, 6, 0, 6},
		{"all are opening", 10_000, []part{{one, 2048, 2048}, {two, 1024, 1024}}, 3072, 3072, 3072},
		{"fewer are allowed now", 5, []part{{one, 4, 0}, {two, 2, 1}}, 5, 1, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBounds(c.max, 1000)
			type granted struct {
				*account
				open bool
			}
			var all []granted
			for _, p := range c.parts {
				for i := range p.n {
					if a := b.resume(p.owner, i >= p.opening); a != nil {
						all = append(all, granted{a, i >= p.opening})
					}
				}
			}
			s := b.stats()
			if s.Conns != c.conns || s.Opening != c.opening || int(s.Refused) != c.all-c.conns || s.Owners != len(c.parts) {
				t.Errorf("%+v; want %d connections, %d of them opening, of %d", s, c.conns, c.opening, c.all)
			}
			for _, g := range all {
				if !g.open {
					g.opened()
				}
				g.end(true)
			}
			if s := b.stats(); s.Conns != 0 || s.Opening != 0 || s.Owners != 0 {
				t.Errorf("left: %+v", s)
			}
		})
	}
}
