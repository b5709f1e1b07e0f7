package services

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestTreeTwin changes trees at random, beside sorted lists that are made anew for each change. A tree has the shape of
// one that is made of the same backends at once, whatever was in it before, and those that it was made from stay as
// they were. Ids that begin alike make nodes fork to the last bit.
func TestTreeTwin(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		mask := []uint64{^uint64(0), 0xfff, 0xfff << 52, 0xf00000000000ff0f}[seed%4]
		backendOf := func(k uint64) backend {
			id := finish(k) & mask
			return backend{id, packet.Endpoint{Port: uint16(id ^ id>>16 ^ id>>52)}}
		}
		var all []backend // sorted by id; one may be there several times
		var old *tree
		var olds []*tree
		var were [][]entry
		for range 30 {
			var gone, come []backend
			for range r.IntN(min(len(all)+1, 1+int(seed)*10)) {
				i := r.IntN(len(all))
				gone, all = append(gone, all[i]), slices.Delete(all, i, i+1)
			}
			for range r.IntN(1 + int(seed)*10) {
				b := backendOf(uint64(r.IntN(600)))
				i, _ := slices.BinarySearchFunc(all, b.id, func(b backend, id uint64) int { return cmp.Compare(b.id, id) })
				come, all = append(come, b), slices.Insert(all, i, b)
			}
			byID := func(a, b backend) int { return cmp.Compare(a.id, b.id) }
			slices.SortFunc(gone, byID)
			slices.SortFunc(come, byID)
			old = old.with(gone, come)
			checkTree(t, old, all)
			olds, were = append(olds, old), append(were, old.entries(nil))
		}
		for i, o := range olds {
			if !slices.Equal(o.entries(nil), were[i]) {
				t.Fatalf("seed %d: a tree was changed by those made from it", seed)
			}
		}
	}
}

// checkTree compares a tree with a sorted list of backends.
func checkTree(t *testing.T, got *tree, all []backend) {
	t.Helper()
	if want := newTree(all); !reflect.DeepEqual(got, want) {
		t.Fatal("the tree is not the one of these backends")
	}
	once := slices.Compact(slices.Clone(all))
	if got.size() != len(once) {
		t.Fatalf("%d backends, want %d", got.size(), len(once))
	}
	for i, b := range once {
		if *got.at(i) != b {
			t.Fatalf("backend %d is %v, want %v", i, *got.at(i), b)
		}
		for _, id := range []uint64{b.id, b.id - 1, b.id + 1} {
			at, found := got.search(id)
			want, there := slices.BinarySearchFunc(once, id, func(b backend, id uint64) int { return cmp.Compare(b.id, id) })
			if at != want || found != there {
				t.Fatalf("id %x is at %d, %v; want %d, %v", id, at, found, want, there)
			}
		}
	}
}

// A change to one backend of a tree costs what it costs in a tree of a tenth of the backends, but for a deeper tree.
func TestTreeCost(t *testing.T) {
	cost := func(n int) float64 {
		list := make([]backend, n)
		for i := range list {
			list[i].id = finish(uint64(i))
		}
		slices.SortFunc(list, func(a, b backend) int { return cmp.Compare(a.id, b.id) })
		whole, one := newTree(list), list[n/2:n/2+1]
		return testing.AllocsPerRun(20, func() { _ = whole.with(one, nil) })
	}
	few, many := cost(10_000), cost(100_000)
	if t.Logf("%v allocations among 10,000, %v among 100,000", few, many); many > few+10 {
		t.Errorf("%v allocations among 100,000 backends, %v among 10,000", many, few)
	}
}

// BenchmarkWinner is the choice among many backends.
func BenchmarkWinner(b *testing.B) {
	for _, n := range []int{16, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := tableOf(manyService(n))
			s := &table.units.At(0).sets[setIndex(0, false, true)]
			h := uint64(1)
			b.ReportAllocs()
			for b.Loop() {
				s.winner(h)
				h = finish(h)
			}
		})
	}
}

// Every backend of a tree is chosen about as often, also where several serve at the ports of one host.
func TestTreeOfHosts(t *testing.T) {
	for _, ports := range []int{1, 2, 16, 40} {
		var list []backend
		for k := range 1600 {
			list = append(list, backend{id: backendID(finish(uint64(k/ports))&podMask, 7, uint16(8000+k%ports))})
		}
		slices.SortFunc(list, func(a, b backend) int { return cmp.Compare(a.id, b.id) })
		whole, chosen := newTree(list), map[uint64]int{}
		for h := range uint64(200 * len(list)) {
			chosen[whole.winner(finish(h)).id]++
		}
		for _, b := range list {
			if n := chosen[b.id]; n < 50 || n > 800 {
				t.Errorf("%d ports on a host: backend %x is chosen %d times, want about 200", ports, b.id, n)
			}
		}
	}
}
