package heap

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// The garbage of a snapshot is returned to the system without another request.
func TestGiveBack(t *testing.T) {
	released := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	const size = 64 << 20
	garbage := make([]byte, size)
	for i := range garbage {
		garbage[i] = 1 // so that the memory is really used
	}
	runtime.KeepAlive(garbage)
	garbage = nil
	before := released()

	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	applied, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		GiveBack(ctx, applied)
	}()
	applied <- struct{}{}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for released() < before+size/2 {
		select {
		case <-ctx.Done():
			t.Fatalf("%d bytes were given back of %d", released()-before, size)
		case <-tick.C:
		}
	}
	cancel()
	<-done
}

// With a large live heap, less garbage may grow, unless the user has set GOGC. At the end the setting is as before.
func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		gogc        string
		small, much int
	}{{"", 100, 40}, {"70", 70, 70}} {
		t.Run("GOGC="+c.gogc, func(t *testing.T) {
			t.Setenv("GOGC", c.gogc)
			const own = 70
			defer debug.SetGCPercent(debug.SetGCPercent(own))
			percent := func() int {
				s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
				metrics.Read(s)
				return int(s[0].Value.Uint64())
			}
			ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
			defer cancel()
			applied, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				GiveBack(ctx, applied)
			}()
			// The second value is taken only after the first has been handled.
			snapshots := func() {
				applied <- struct{}{}
				applied <- struct{}{}
			}
			runtime.GC()
			snapshots()
			if got := percent(); got != c.small {
				t.Errorf("%d %% with a small heap, want %d", got, c.small)
			}
			lives := make([]byte, 2*smallHeap)
			runtime.GC()
			snapshots()
			if got := percent(); got != c.much {
				t.Errorf("%d %% with a large heap, want %d", got, c.much)
			}
			runtime.KeepAlive(lives)
			cancel()
			<-done
			if got := percent(); got != own {
				t.Errorf("%d %% in the end, want %d as before", got, own)
			}
		})
	}
}

// Begin puts off the first collection, and nothing else. What the user has set stays.
func TestBegin(t *testing.T) {
	const own = 70
	defer debug.SetGCPercent(debug.SetGCPercent(own))
	t.Setenv("GOGC", "70")
	Begin()
	if got := percent(); got != own {
		t.Errorf("%d %%, want %d as the user has set it", got, own)
	}
	t.Setenv("GOGC", "")
	Begin()
	if got, want := percent(), 100*startHeap/firstHeap; got != want {
		t.Errorf("%d %% before the first collection, want %d", got, want)
	}
	runtime.GC()
	await.Until(t, "no more garbage than before", func() bool { return percent() == own })
}
