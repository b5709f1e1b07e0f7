// Package heap gives the memory that snapshots of the cluster leave behind back to the system.
package heap

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// quietTime is how long nothing must have changed before memory is given back, and restTime how often that is
	// looked at when nothing changes at all: peers that do not answer leave garbage, too.
	quietTime = time.Second
	restTime  = 5 * time.Second
	// littleGarbage in bytes is not worth a collection, nor is an eighth of what lives.
	littleGarbage = 4 << 20
	// smallHeap in bytes is what lives where there are some hundred Services.
	smallHeap = 24 << 20
)

// GiveBack returns the memory that snapshots leave behind to the system, once no more changes come, until ctx is done.
// The runtime by itself collects only when the heap has doubled or after two minutes, and at rest, since packets
// allocate nothing, the agent would keep what reading the cluster took at its worst. applied gets a value after every
// snapshot.
func GiveBack(ctx context.Context, applied <-chan struct{}) {
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	clean := uint64(0) // bytes allocated until the last time
	pace := os.Getenv("GOGC") == ""
	if pace {
		defer debug.SetGCPercent(debug.SetGCPercent(growth(0)))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-applied:
			if _, live := heapUse(); pace {
				debug.SetGCPercent(growth(live))
			}
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

// growth gives the garbage that may be there before the runtime collects it, in percent of what lives: as the runtime
// has it by itself while both are little, and less in large clusters, where snapshots leave most of it, and where
// collecting twice as often costs little beside making them.
func growth(live uint64) int {
	if live < smallHeap {
		return 100
	}
	return 40
}

// heapUse gives the bytes ever allocated on the heap, and those found in use by the last collection.
func heapUse() (allocated, live uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
