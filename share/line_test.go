package share_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"tapestry.dev/tapestry/share"
)

type place = share.Place[string, int]

// An owner with many in the line delays another by one call.
func TestLine(t *testing.T) {
	var l share.Line[string, int]
	add := func(owner string, values ...int) {
		for _, v := range values {
			l.Add(&place{Value: v}, owner)
		}
	}
	add("greedy", 1, 2, 3, 4)
	add("b", 10)
	add("c", 20, 21)
	var got []int
	for p := l.Next(); p != nil; p = l.Next() {
		if got = append(got, p.Value); p.Value == 2 {
			add("d", 30)
		}
	}
	if want := []int{1, 10, 20, 2, 21, 3, 30, 4}; !slices.Equal(got, want) {
		t.Errorf("called in the order %v, want %v", got, want)
	}
	if l.Len() != 0 || l.First() != nil {
		t.Errorf("%d are left", l.Len())
	}
}

// slowLine is a Line that goes through everybody for every answer: it calls the first of the owner whose turn was
// longest ago, and of those whose turn never was, the one who came first.
type slowLine struct {
	places []*place
	owner  map[*place]string
	turn   map[string]int // when it was the owner's turn, or when it came; gone with its last place
	now    int
}

func (s *slowLine) add(p *place, owner string) {
	if s.now++; !slices.ContainsFunc(s.places, func(o *place) bool { return s.owner[o] == owner }) {
		s.turn[owner] = s.now
	}
	s.places, s.owner[p] = append(s.places, p), owner
}

func (s *slowLine) first() *place {
	var best *place
	for _, p := range s.places {
		if best == nil || s.turn[s.owner[p]] < s.turn[s.owner[best]] {
			best = p
		}
	}
	return best
}

func (s *slowLine) remove(p *place) {
	s.places = slices.DeleteFunc(s.places, func(o *place) bool { return o == p })
}

func TestLineTwin(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 3))
		var l share.Line[string, int]
		slow := &slowLine{owner: map[*place]string{}, turn: map[string]int{}}
		for step := range 500 {
			switch pick := random.IntN(10); {
			case pick < 5:
				p, owner := &place{Value: step}, string(rune('a'+random.IntN(1+int(seed%6))))
				l.Add(p, owner)
				slow.add(p, owner)
			case pick < 8:
				want := slow.first()
				if first := l.First(); first != want {
					t.Fatalf("seed %d, step %d: First is %v, want %v", seed, step, first, want)
				}
				if got := l.Next(); got != want {
					t.Fatalf("seed %d, step %d: Next is %v, want %v", seed, step, got, want)
				}
				if want != nil {
					slow.now++
					slow.turn[slow.owner[want]] = slow.now
					slow.remove(want)
				}
			case pick == 8:
				owner := string(rune('a' + random.IntN(6)))
				var want *place
				for _, p := range slow.places {
					if slow.owner[p] == owner && want == nil {
						want = p
					}
				}
				if got := l.NextOf(owner); got != want {
					t.Fatalf("seed %d, step %d: NextOf is %v, want %v", seed, step, got, want)
				}
				if want != nil {
					slow.remove(want)
				}
			case len(slow.places) > 0:
				p := slow.places[random.IntN(len(slow.places))]
				slow.remove(p)
				if !l.Remove(p) || l.Remove(p) {
					t.Fatalf("seed %d, step %d: Remove", seed, step)
				}
			}
			if l.Len() != len(slow.places) {
				t.Fatalf("seed %d, step %d: %d wait, want %d", seed, step, l.Len(), len(slow.places))
			}
		}
	}
}

func TestPlaceTwice(t *testing.T) {
	var l share.Line[string, int]
	p := new(place)
	l.Add(p, "a")
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	l.Add(p, "a")
}
