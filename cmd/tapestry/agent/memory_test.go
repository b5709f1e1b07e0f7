package agent

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// What a snapshot leaves behind goes back to the system without anybody asking again.
func TestGiveBack(t *testing.T) {
	released := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	const size = 64 << 20
	garbage := make([]byte, size)
	for i := range garbage {
		garbage[i] = 1 // in memory, not only promised
	}
	runtime.KeepAlive(garbage)
	garbage = nil
	before := released()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	applied, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		giveBack(ctx, applied)
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
