package balance

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// A Load stays while it is held or has open connections, and goes afterwards.
func TestLoadsStayWhileUsed(t *testing.T) {
	var l Loads
	held := l.Hold([]uint64{1, 2, 2})
	if l.Find(1) != held[1] || l.Find(2) != held[2] || l.Find(3) != nil || l.Len() != 2 {
		t.Fatalf("held %v, found %v and %v", held, l.Find(1), l.Find(2))
	}
	held[1].Begin()
	l.Release([]uint64{1, 2})
	if l.Find(1) != held[1] || l.Find(2) != held[2] {
		t.Error("one that has a connection, or is held a second time, went")
	}
	if again := l.Hold([]uint64{1}); again[1] != held[1] || again[1].Open() != 1 {
		t.Error("one that came back has forgotten its connection")
	}
	l.Release([]uint64{1, 2})
	if l.Find(1) == nil || l.Find(2) != nil {
		t.Error("want the one with a connection, and not the other")
	}
	held[1].End(false)
	l.Release(nil)
	if l.Len() != 0 || l.Find(1) != nil {
		t.Error("the last one stays")
	}
	restored := l.FindOrMake(7)
	restored.Add(2, 0)
	if l.Release(nil); l.Find(7) != restored {
		t.Error("one with connections of an earlier agent went")
	}
}

// Holding and releasing at the same time as finding leaves what is held, and loses no count.
func TestLoadsTogether(t *testing.T) {
	var l Loads
	l.Hold([]uint64{1, 2, 3})
	var wg sync.WaitGroup
	for n := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(n, n))
			for range 500 {
				id := 1 + r.Uint64N(6)
				l.Hold([]uint64{id})
				l.Find(id).Begin()
				l.Find(id).End(false)
				l.Release([]uint64{id})
			}
		})
	}
	wg.Wait()
	if l.Len() != 3 {
		t.Errorf("%d Loads are left, want 3", l.Len())
	}
	for id := range uint64(3) {
		if load := l.Find(id + 1); load == nil || load.open.Load() != 0 || load.waiting.Load() != 0 {
			t.Errorf("Load %d: %+v", id+1, load)
		}
	}
}
