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
		wentIn := func(name string) bool {
			mu.Lock()
			defer mu.Unlock()
			in = append(in, name)
			return true
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
		time.Sleep(time.Nanosecond)
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

// TestLobbyOfTheDead: those that are dead when their turn comes, and leave then, take neither a turn nor a place,
// however many they are, and no call of admit is within another one.
func TestLobbyOfTheDead(t *testing.T) {
	const free, every, many = 2, 10 * time.Millisecond, 1000
	synctest.Test(t, func(t *testing.T) {
		var l *Lobby[string, int]
		stays := make([]Stay[string, int], 2*many+2)
		admitted, within := 0, 0
		l = NewLobby[string](free, every, func(i int) bool {
			if within++; within > 1 {
				t.Errorf("%d calls of admit at once", within)
			}
			defer func() { within-- }()
			if i%many < free { // alive
				admitted = i
				return true
			}
			l.Leave(&stays[i])
			return false
		})
		for i := range stays {
			stays[i].Value = i
			if at := l.Enter(&stays[i], "a"); at != (i < free) {
				t.Fatalf("%d: Enter is %v", i, at)
			}
		}
		time.Sleep(every)
		synctest.Wait()
		if admitted != many || l.inside["a"] != free+1 {
			t.Errorf("at the pace %d went in, and %d are inside; want %d, %d", admitted, l.inside["a"], many, free+1)
		}
		for i := range free {
			l.Leave(&stays[i])
		}
		if admitted != many+1 || l.inside["a"] != free {
			t.Errorf("in a free place %d went in, and %d are inside; want %d, %d", admitted, l.inside["a"], many+1, free)
		}
		l.Leave(&stays[many])
		l.Leave(&stays[many+1])
		if admitted != 2*many+1 || l.inside["a"] != 2 || l.line.Len() != 0 {
			t.Errorf("in the end %d went in, %d are inside and %d wait", admitted, l.inside["a"], l.line.Len())
		}
	})
}

// TestLobbyTwin holds a Lobby against lists: nobody is lost or let in twice, who is dead when its turn comes takes
// none, nobody of an owner waits while the owner has room, and the pace lets in whose turn it is.
func TestLobbyTwin(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 7))
		free := 1 + random.IntN(4)
		inside, waiting := map[*Stay[int, int]]bool{}, map[*Stay[int, int]]bool{}
		byID, dead := map[int]*Stay[int, int]{}, map[int]bool{} // who is dead when its turn comes
		goIn := func(id int) bool {
			s := byID[id]
			if waiting[s] && dead[id] {
				delete(waiting, s)
				return false
			}
			if inside[s] || !waiting[s] {
				t.Fatalf("seed %d: %d was let in, and was inside or did not wait", seed, id)
			}
			delete(waiting, s)
			inside[s] = true
			return true
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
				alive := func() (n int) {
					for s := range waiting {
						if !dead[s.Value] {
							n++
						}
					}
					return n
				}
				if n := alive(); l.next() != (n > 0) || alive() != max(0, n-1) || n == 0 && len(waiting) > 0 {
					t.Fatalf("seed %d: %d waited, and now %d do", seed, n, alive())
				}
			case pick == 7:
				for s := range waiting {
					dead[s.Value] = true
					break
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
