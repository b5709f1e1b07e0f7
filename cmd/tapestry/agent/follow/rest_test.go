package follow

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// An EndpointSlice that flaps 100 times a second costs a quarter of a processor at most, however long a state takes to
// be applied, and its last state is applied. A change that comes alone does not wait.
func TestFlappingIsApplied(t *testing.T) {
	for _, takes := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 90 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			const changes = 1000
			changed := make(chan struct{}, 1)
			var latest atomic.Int64
			began := time.Now()
			go func() {
				for range changes {
					time.Sleep(10 * time.Millisecond)
					latest.Add(1)
					select {
					case changed <- struct{}{}:
					default: // the source tells the newest state
					}
				}
			}()
			applied, last := 0, int64(0)
			for last < changes {
				<-changed
				synctest.Wait()
				last = latest.Load()
				time.Sleep(takes)
				applied++
				rest(t.Context(), takes, nil)
			}
			busy := time.Duration(applied) * takes
			if t.Logf("%v each: %d of %d states were applied", takes, applied, changes); busy > time.Since(began)/(1+restFactor)+takes {
				t.Errorf("%v of %v were used", busy, time.Since(began))
			}
			alone := time.Now()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if rest(ctx, time.Hour, nil); time.Since(alone) != 0 {
				t.Error("it rested although it was told to end")
			}
			urgent := make(chan struct{}, 1)
			urgent <- struct{}{}
			if rest(t.Context(), time.Hour, urgent); time.Since(alone) != 0 {
				t.Error("it rested although something was urgent")
			}
		})
	}
}
