package share_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"tapestry.dev/tapestry/share"
)

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		held, most, free int
		want             share.Decision
	}{
		{0, 0, 1, share.Free},
		{9, 9, 1, share.Free},
		{0, 9, 0, share.Most},
		{3, 5, 0, share.Most},
		{4, 5, 0, share.Own}, // the two would only change places
		{5, 5, 0, share.Own},
		{1, 1, 0, share.Own},
		{0, 1, 0, share.Refuse},
		{0, 2, 0, share.Most},
	} {
		if got := share.Decide(c.held, c.most, c.free); got != c.want {
			t.Errorf("Decide(%d, %d, %d) = %v, want %v", c.held, c.most, c.free, got, c.want)
		}
	}
}

func TestDecideKept(t *testing.T) {
	for _, c := range []struct {
		held, free int
		want       share.Decision
	}{
		{0, 1, share.Free}, {0, 0, share.Refuse}, {4, 4, share.Refuse}, {4, 5, share.Free}, {7, 1, share.Refuse},
	} {
		if got := share.DecideKept(c.held, c.free); got != c.want {
			t.Errorf("DecideKept(%d, %d) = %v, want %v", c.held, c.free, got, c.want)
		}
	}
}

type (
	limit = share.Limit[string, int]
	claim = share.Claim[string, int]
)

// acquire gets n claims for an owner, with consecutive values from first.
func acquire(t *testing.T, l *limit, owner string, first, n int) (held []*claim, lost []int) {
	t.Helper()
	for i := range n {
		c := &claim{Value: first + i}
		gone, ok := l.Acquire(c, owner)
		if !ok {
			t.Fatalf("%s did not get its unit %d", owner, i+1)
		}
		held = append(held, c)
		if gone != nil {
			lost = append(lost, gone.Value)
		}
	}
	return held, lost
}

// TestOneWantsAll: an owner that asks endlessly costs nobody else anything.
func TestOneWantsAll(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 100})
	acquire(t, l, "greedy", 0, 1000)
	if n := l.Held("greedy"); n != 100 {
		t.Fatalf("the greedy owner holds %d of 100 while nobody else wants any", n)
	}
	_, lost := acquire(t, l, "modest", 5000, 10)
	if want := []int{900, 901, 902, 903, 904, 905, 906, 907, 908, 909}; !slices.Equal(lost, want) {
		t.Errorf("ten others cost the claims %v, want the ten oldest of the greedy owner, %v", lost, want)
	}
	if _, lost := acquire(t, l, "greedy", 2000, 1000); slices.ContainsFunc(lost, func(v int) bool { return v >= 5000 }) {
		t.Error("the greedy owner took a unit from the modest one")
	}
	if n := l.Held("modest"); n != 10 {
		t.Errorf("the modest owner holds %d of its 10", n)
	}
	s := l.Stats()
	if s.Held != 100 || s.Owners != 2 || s.Most != 90 || s.TakenFromMost != 10 || s.TakenFromOwn != 900+1000 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// TestAllWantAll: owners that all ask endlessly become equal, and stay equal.
func TestAllWantAll(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 100})
	acquire(t, l, "a", 0, 300)
	for range 100 {
		for _, o := range []string{"b", "c", "a"} {
			acquire(t, l, o, 0, 1)
		}
	}
	for _, o := range []string{"a", "b", "c"} {
		if n := l.Held(o); n < 33 || n > 34 {
			t.Errorf("%s holds %d of 100", o, n)
		}
	}
}

func TestMoreOwnersThanUnits(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 3})
	for _, o := range []string{"a", "b", "c"} {
		acquire(t, l, o, 0, 1)
	}
	if lost, ok := l.Acquire(&claim{}, "d"); ok || lost != nil {
		t.Errorf("the fourth owner got one of three: %v, lost %v", ok, lost)
	}
	if s := l.Stats(); s.Refused != 1 || s.Owners != 3 {
		t.Errorf("%+v", s)
	}
}

func TestReserve(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 100, Reserve: 20, Own: "node"})
	acquire(t, l, "greedy", 0, 1000)
	if n := l.Held("greedy"); n != 100 {
		t.Errorf("the owner holds %d, want all while the node wants nothing", n)
	}
	for i := range 30 {
		acquire(t, l, fmt.Sprint("pod ", i), 0, 10)
	}
	acquire(t, l, "node", 0, 20)
	if n := l.Held("node"); n != 20 {
		t.Errorf("the node holds %d, want its reserve among 31 others with 80", n)
	}
	acquire(t, l, "node", 100, 1000)
	if n := l.Held("node"); n < 20+2 || n > 20+3 {
		t.Errorf("the node holds %d, want its reserve and as much as each of the others", n)
	}
}

func TestTouch(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 3})
	held, _ := acquire(t, l, "a", 0, 3)
	l.Touch(held[0])
	l.Touch(held[0])
	if _, lost := acquire(t, l, "a", 3, 3); !slices.Equal(lost, []int{1, 2, 0}) {
		t.Errorf("claims were lost in the order %v, want that of their last use: 1, 2, 0", lost)
	}
	l.Touch(held[0]) // it was lost, so nothing happens
	if l.Release(held[0]) || l.Held("a") != 3 {
		t.Error("a claim that was lost gave a unit back")
	}
}

func TestKeep(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 100, Reserve: 20, Own: "node", Keep: true})
	get := func(owner string) (n int) {
		for {
			lost, ok := l.Acquire(&claim{}, owner)
			if lost != nil {
				t.Fatal("a claim was taken away")
			}
			if !ok {
				return n
			}
			n++
		}
	}
	for _, c := range []struct {
		owner string
		want  int
	}{{"a", 40}, {"a", 0}, {"b", 20}, {"c", 10}, {"node", 25}} {
		if n := get(c.owner); n != c.want {
			t.Errorf("%s got %d, want %d", c.owner, n, c.want)
		}
	}
}

// TestTake: where there are fewer units than expected, Take chooses the claim that would be lost to another owner.
func TestTake(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 100})
	if lost, ok := l.Take("new"); ok {
		t.Errorf("%v was taken from nobody", lost)
	}
	acquire(t, l, "greedy", 0, 5)
	acquire(t, l, "modest", 100, 1)
	for i, owner := range []string{"new", "modest", "greedy"} {
		if lost, ok := l.Take(owner); !ok || lost.Value != i {
			t.Errorf("for %s %v was taken, want the greedy owner's oldest, %d", owner, lost, i)
		}
	}
	if lost, ok := l.Take("modest"); !ok || lost.Value != 100 { // the greedy owner has two left
		t.Errorf("for the modest owner %v was taken, want its own", lost)
	}
	if s := l.Stats(); s.Held != 2 || s.Owners != 1 || s.TakenFromMost != 2 || s.TakenFromOwn != 2 {
		t.Errorf("%+v", s)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []share.Options[string]{{}, {Total: 1, Reserve: 1}, {Total: 5, Reserve: -1}} {
		t.Run(fmt.Sprint(o.Total, o.Reserve), func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			share.New[string, int](o)
		})
	}
}

func TestHeldTwice(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 2})
	held, _ := acquire(t, l, "a", 0, 1)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	_, _ = l.Acquire(held[0], "a")
}

// TestConcurrent lets many goroutines share few units, under the race detector. Claims that were lost and claims that
// were released add up to those that were acquired.
func TestConcurrent(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 10})
	var all sync.WaitGroup
	var mu sync.Mutex
	got, gone := 0, 0
	for i := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			var mine []*claim
			for range 2000 {
				if random.IntN(3) == 0 && len(mine) > 0 {
					back := l.Release(mine[0])
					mine = mine[1:]
					if back {
						mu.Lock()
						gone++
						mu.Unlock()
					}
					continue
				}
				c := &claim{}
				lost, ok := l.Acquire(c, fmt.Sprint(i%4))
				if !ok {
					continue
				}
				mine = append(mine, c)
				l.Touch(c)
				mu.Lock()
				got++
				if lost != nil {
					gone++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if s := l.Stats(); s.Held != got-gone || s.Held > 10 {
		t.Errorf("%d claims were acquired, %d are gone, and %d are held", got, gone, s.Held)
	}
}

func TestAllocs(t *testing.T) {
	l := share.New[string, int](share.Options[string]{Total: 2})
	claims := make([]claim, 3)
	owners := []string{"a", "b", "c"}
	turn := func() {
		for i := range claims {
			l.Acquire(&claims[i], owners[i])
			l.Touch(&claims[i])
		}
		for i := range claims {
			l.Release(&claims[i])
		}
	}
	turn()
	if n := testing.AllocsPerRun(100, turn); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
