package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// quietTime is how long nothing must have changed before memory is given back, and restTime how often that is looked
	// at when nothing changes at all: peers that do not answer leave garbage, too.
	quietTime = time.Second
	restTime  = 5 * time.Second
	// littleGarbage in bytes is not worth a collection, nor is an eighth of what lives.
	littleGarbage = 4 << 20
)

// giveBack returns the memory that snapshots leave behind to the system, once no more changes come. The runtime by itself
// collects only when the heap has doubled or after two minutes, and at rest, since packets allocate nothing, the agent would
// keep what reading the cluster took at its worst. applied gets a value after every snapshot.
func giveBack(ctx context.Context, applied <-chan struct{}) {
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	clean := uint64(0) // bytes allocated until the last time
	for {
		select {
		case <-ctx.Done():
			return
		case <-applied:
			quiet.Reset(quietTime)
		case <-quiet.C:
			if allocated, live := heapUse(); allocated-clean > max(littleGarbage, live/8) {
				debug.FreeOSMemory()
				clean = allocated
			}
			quiet.Reset(restTime)
		}
	}
}

// heapUse gives the bytes ever allocated on the heap, and those found in use by the last collection.
func heapUse() (allocated, live uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
