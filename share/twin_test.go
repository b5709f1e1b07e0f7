package share_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"tapestry.dev/tapestry/share"
)

// twin is a Limit that goes through every claim for every answer.
type twin struct {
	share.Options[string]
	claims []*claim          // least recently used first
	owner  map[*claim]string // of each claim
}

func (w *twin) held(owner string) (n int) {
	for _, c := range w.claims {
		if w.owner[c] == owner {
			n++
		}
	}
	return n
}

func (w *twin) charge(owner string) int {
	if owner == w.Own {
		return max(0, w.held(owner)-w.Reserve)
	}
	return w.held(owner)
}

// most returns the owners with the largest charge.
func (w *twin) most() (owners []string, charge int) {
	for _, o := range w.owner {
		switch n := w.charge(o); {
		case n > charge:
			owners, charge = []string{o}, n
		case n == charge:
			owners = append(owners, o)
		}
	}
	return owners, charge
}

// decide is the rule. An owner that does not have its whole reserve takes a unit from whoever has the most.
func (w *twin) decide(owner string) share.Decision {
	free, kept := w.Total-len(w.claims), max(0, w.Reserve-w.held(w.Own))
	_, most := w.most()
	reserved := owner == w.Own && w.held(owner) < w.Reserve
	switch {
	case w.Keep && reserved:
		return share.Free
	case w.Keep:
		return share.DecideKept(w.charge(owner), free-kept)
	case reserved && free == 0:
		return share.Most
	}
	return share.Decide(w.charge(owner), most, free)
}

func (w *twin) oldest(owner string) *claim {
	return w.claims[slices.IndexFunc(w.claims, func(c *claim) bool { return w.owner[c] == owner })]
}

func (w *twin) remove(c *claim) {
	w.claims = slices.DeleteFunc(w.claims, func(o *claim) bool { return o == c })
	delete(w.owner, c)
}

// agrees reports whether Acquire may have answered so, and applies the answer to the twin.
func (w *twin) agrees(c *claim, owner string, lost *claim, ok bool) bool {
	owners, _ := w.most()
	good := false
	switch w.decide(owner) {
	case share.Free:
		good = ok && lost == nil
	case share.Refuse:
		good = !ok && lost == nil
	case share.Own:
		good = ok && lost == w.oldest(owner)
	case share.Most:
		good = ok && lost != nil && slices.Contains(owners, w.owner[lost]) && lost == w.oldest(w.owner[lost])
	}
	if lost != nil {
		w.remove(lost)
	}
	if ok {
		w.claims = append(w.claims, c)
		w.owner[c] = owner
	}
	return good
}

// TestTwin compares a Limit with its slow twin over random calls.
func TestTwin(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		o := share.Options[string]{Total: 1 + random.IntN(12), Own: "node", Keep: seed%3 == 0}
		o.Reserve = random.IntN(o.Total)
		l, w := share.New[string, int](o), &twin{Options: o, owner: map[*claim]string{}}
		names := []string{"node", "a", "b", "c", "d", "e", "f"}[:2+random.IntN(6)]
		for step := range 400 {
			switch pick := random.IntN(10); {
			case pick < 6:
				c, owner := &claim{Value: step}, names[random.IntN(len(names))]
				decision, loses := l.Next(owner)
				if want := w.decide(owner); decision != want {
					t.Fatalf("seed %d, step %d: %+v: Next(%s) = %v, want %v", seed, step, o, owner, decision, want)
				}
				lost, ok := l.Acquire(c, owner)
				if lost != loses {
					t.Fatalf("seed %d, step %d: %+v: Acquire(%s) took %v, and Next said %v", seed, step, o, owner, lost, loses)
				}
				if !w.agrees(c, owner, lost, ok) {
					t.Fatalf("seed %d, step %d: %+v: Acquire(%s) = %v, %v", seed, step, o, owner, lost, ok)
				}
			case len(w.claims) == 0:
			case pick < 8:
				c := w.claims[random.IntN(len(w.claims))]
				l.Touch(c)
				owner := w.owner[c]
				w.remove(c)
				w.claims, w.owner[c] = append(w.claims, c), owner
			default:
				c := w.claims[random.IntN(len(w.claims))]
				w.remove(c)
				if !l.Release(c) || l.Release(c) {
					t.Fatalf("seed %d, step %d: Release", seed, step)
				}
			}
			_, most := w.most()
			s := l.Stats()
			if s.Held != len(w.claims) || s.Most != most {
				t.Fatalf("seed %d, step %d: %+v, want %d held and %d for the largest", seed, step, s, len(w.claims), most)
			}
			for _, owner := range names {
				if l.Held(owner) != w.held(owner) {
					t.Fatalf("seed %d, step %d: %s holds %d, want %d", seed, step, owner, l.Held(owner), w.held(owner))
				}
			}
		}
	}
}
