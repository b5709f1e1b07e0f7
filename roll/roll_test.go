package roll

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"weak"
)

// TestListAlways changes Lists at random, beside slices that are copied for each change. All Lists are looked at again
// in the end, so whatever changed one that was made before shows.
func TestListAlways(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		twin := make([]int, r.IntN(3*block+2))
		for i := range twin {
			twin[i] = r.IntN(5)
		}
		lists, twins := []List[int]{From(twin)}, [][]int{slices.Clone(twin)}
		for range 50 {
			from := r.IntN(len(lists))
			l, now := lists[from], slices.Clone(twins[from])
			if r.IntN(3) == 0 || len(now) == 0 {
				x := r.IntN(5)
				l, now = l.Append(x), append(now, x)
			} else {
				var edits []Edit[int]
				for range r.IntN(4) {
					e := Edit[int]{r.IntN(len(now)), r.IntN(5)}
					edits = append(edits, e)
					now[e.At] = e.To
				}
				l = l.With(edits...)
			}
			lists, twins = append(lists, l), append(twins, now)
		}
		for i, l := range lists {
			if !slices.Equal(l.Slice(), twins[i]) || l.Len() != len(twins[i]) {
				t.Fatalf("seed %d: list %d has %v, want %v", seed, i, l.Slice(), twins[i])
			}
			for j, x := range l.All() {
				if x != twins[i][j] || l.At(j) != x {
					t.Fatalf("seed %d: list %d has %d at %d", seed, i, x, j)
				}
			}
			other := r.IntN(len(lists))
			checkReplaced(t, l, lists[other], twins[i], twins[other])
		}
	}
}

// checkReplaced compares Replaced and Same with a comparison of all elements.
func checkReplaced(t *testing.T, old, now List[int], was, is []int) {
	t.Helper()
	var want []int
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			want = append(want, i)
		}
	}
	got, ok := Replaced(old, now)
	if ok != (len(was) == len(is)) || ok && !slices.Equal(got, want) {
		t.Fatalf("%v, %v are replaced, want %v", got, ok, want)
	}
	if old.Same(now) && !slices.Equal(was, is) {
		t.Fatal("lists that differ are the same")
	}
}

func TestListSearch(t *testing.T) {
	var l List[int]
	for i := range 2 * block {
		l = l.Append(2 * i)
	}
	for x := -1; x < 4*block+2; x++ {
		i, found := l.Search(func(y int) int { return y - x })
		if want := min(max(0, (x+1)/2), l.Len()); i != want || found != (x >= 0 && x%2 == 0 && x < 4*block) {
			t.Errorf("%d is at %d, %v; want %d", x, i, found, want)
		}
	}
}

// TestMapAlways changes Maps at random, beside maps of Go that are copied for each change. Hashes of few bits, and
// equal ones, have nodes fork to the last bit.
func TestMapAlways(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		mask := []uint64{0, 3, 0xff, 0xf << 60, ^uint64(0)}[seed%5]
		hash := func(k int) uint64 { return uint64(k) * 0x9e3779b97f4a7c15 & mask }
		ms, twins := []Map[int, int]{{}}, []map[int]int{{}}
		for range 30 {
			from := r.IntN(len(ms))
			e, twin := ms[from].Edit(), maps.Clone(twins[from])
			for range r.IntN(40) {
				if k := r.IntN(60); r.IntN(3) == 0 {
					e.Delete(hash(k), k)
					delete(twin, k)
				} else {
					v := r.IntN(100)
					e.Set(hash(k), k, v)
					twin[k] = v
				}
				if r.IntN(20) == 0 { // what is done stays as it is, though the Editor goes on
					ms, twins = append(ms, e.Done()), append(twins, maps.Clone(twin))
				}
			}
			ms, twins = append(ms, e.Done()), append(twins, twin)
		}
		for i, m := range ms {
			if got := maps.Collect(m.All()); !maps.Equal(got, twins[i]) || m.Len() != len(twins[i]) {
				t.Fatalf("seed %d: map %d has %v, want %v", seed, i, got, twins[i])
			}
			for k := range 60 {
				v, ok := m.Get(hash(k), k)
				if want, there := twins[i][k]; v != want || ok != there {
					t.Fatalf("seed %d: map %d has %d, %v for %d; want %d, %v", seed, i, v, ok, k, want, there)
				}
			}
		}
	}
}

// One change costs as many allocations among 50,000 as among 10, but for the deeper tree.
func TestCost(t *testing.T) {
	for name, cost := range map[string]func(n int) float64{
		"list": func(n int) float64 {
			l := From(make([]int, n))
			return testing.AllocsPerRun(20, func() { _ = l.With(Edit[int]{n / 2, 1}) })
		},
		"map": func(n int) float64 {
			e := Map[int, int]{}.Edit()
			hash := func(k int) uint64 { return uint64(k) * 0x9e3779b97f4a7c15 }
			for k := range n {
				e.Set(hash(k), k, k)
			}
			m := e.Done()
			return testing.AllocsPerRun(20, func() {
				e := m.Edit()
				e.Set(hash(n/2), n/2, -1)
				_ = e.Done()
			})
		},
	} {
		if few, many := cost(10), cost(50_000); many > few+10 {
			t.Errorf("%s: %v allocations among 50,000, %v among 10", name, many, few)
		}
	}
}

func BenchmarkMap(b *testing.B) {
	for _, n := range []int{10, 150_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e := Map[uint64, int32]{}.Edit()
			for k := range uint64(n) {
				e.Set(k*0x9e3779b97f4a7c15, k, 1)
			}
			m := e.Done()
			k := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				m.Get(k*0x9e3779b97f4a7c15, k)
				k = (k + 7919) % uint64(n)
			}
		})
	}
}

// What is replaced in a List, and in no other, is garbage, though its neighbours stay.
func TestReplacedIsGarbage(t *testing.T) {
	elements := make([]*[64]int, 2*block)
	for i := range elements {
		elements[i] = new([64]int)
	}
	gone := weak.Make(elements[0])
	l := From(elements)
	clear(elements)
	l = l.With(Edit[*[64]int]{At: 0, To: new([64]int)})
	for range 3 {
		runtime.GC()
	}
	if gone.Value() != nil {
		t.Error("the replaced element is kept")
	}
	runtime.KeepAlive(l)
}
