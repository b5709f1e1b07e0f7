package share

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

type stay = Stay[string, string]

// TestLobby: an owner who comes with many has a few let in at once and the others at the pace, and delays nobody else.
func TestLobby(t *testing.T) {
	const free, every = 3, 10 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var in []string
		wentIn := func(name string) {
			mu.Lock()
			defer mu.Unlock()
			in = append(in, name)
		}
		l := NewLobby[string](free, every, wentIn)
		stays := map[string]*stay{}
		enter := func(owner string, count int) {
			for i := range count {
				name := fmt.Sprint(owner, i)
				stays[name] = &stay{Value: name}
				if l.Enter(stays[name], owner) {
					wentIn(name)
				}
			}
		}
		want := func(what string, names ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(in, names) {
				t.Errorf("%s: %q went in, want %q", what, in, names)
			}
			in = nil
		}
		enter("a", 9)
		enter("b", 2)
		want("at once", "a0", "a1", "a2", "b0", "b1")
		if l.Waits(stays["a2"]) || !l.Waits(stays["a3"]) {
			t.Error("Waits")
		}
		time.Sleep(every)
		want("after a while", "a3")
		enter("c", 5)
		want("another owner", "c0", "c1", "c2")
		time.Sleep(3 * every)
		want("in turns", "a4", "c3", "a5")
		l.Leave(stays["a0"])
		l.Leave(stays["a0"])
		l.Leave(stays["a1"])
		l.Leave(stays["a2"])
		want("as many left as came at the pace")
		l.Leave(stays["a6"])
		l.Leave(stays["a3"])
		want("in the place of one who left", "a7")
		time.Sleep(2 * every)
		want("the rest", "c4", "a8")
		time.Sleep(time.Hour)
		enter("a", 1)
		time.Sleep(every - 1)
		want("not before the pace allows")
		time.Sleep(1)
		want("at the pace", "a0")
		gone := new(stay)
		l.Leave(gone)
		if !l.Enter(gone, "d") || l.inside["d"] != 0 {
			t.Error("one who left before waits, or counts")
		}
		enter("a", 3)
		l.Open()
		enter("a", 2)
		want("opened", "a0", "a1", "a2", "a0", "a1")
	})
}

// TestLobbyTwin holds a Lobby against lists: nobody is lost or let in twice, nobody of an owner waits while the owner
// has room, and the pace lets in whose turn it is.
func TestLobbyTwin(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 7))
		free := 1 + random.IntN(4)
		inside, waiting := map[*Stay[int, int]]bool{}, map[*Stay[int, int]]bool{}
		byID := map[int]*Stay[int, int]{}
		goIn := func(id int) {
			s := byID[id]
			if inside[s] || !waiting[s] {
				t.Fatalf("seed %d: %d was let in, and was inside or did not wait", seed, id)
			}
			delete(waiting, s)
			inside[s] = true
		}
		l := NewLobby[int](free, time.Hour, goIn)
		of := func(set map[*Stay[int, int]]bool, owner int) (n int) {
			for s := range set {
				if s.key == owner {
					n++
				}
			}
			return n
		}
		for id := range 400 {
			switch pick := random.IntN(10); {
			case pick < 5:
				s, owner := &Stay[int, int]{Value: id}, random.IntN(4)
				byID[id] = s
				room := of(inside, owner) < free
				if l.Enter(s, owner) != room {
					t.Fatalf("seed %d: Enter is %v", seed, !room)
				}
				if waiting[s] = true; room {
					goIn(id)
				}
			case pick < 7:
				if n := len(waiting); l.next() != (n > 0) || len(waiting) != max(0, n-1) {
					t.Fatalf("seed %d: %d waited, and now %d do", seed, n, len(waiting))
				}
			default:
				for s := range byID {
					l.Leave(byID[s])
					delete(inside, byID[s])
					delete(waiting, byID[s])
					delete(byID, s)
					break
				}
			}
			for owner := range 4 {
				in, out := of(inside, owner), of(waiting, owner)
				if l.inside[owner] != in || out > 0 && in < free {
					t.Fatalf("seed %d: owner %d has %d inside, counted as %d, and %d wait", seed, owner, in, l.inside[owner], out)
				}
			}
			if l.line.Len() != len(waiting) {
				t.Fatalf("seed %d: %d wait, want %d", seed, l.line.Len(), len(waiting))
			}
		}
		l.timer.Stop()
	}
}
