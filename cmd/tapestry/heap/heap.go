// Package heap says when memory is collected: not while an agent starts. It returns memory that snapshots of the
// cluster no longer use to the system.
package heap

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// quietTime is how long no snapshot must have come before memory is returned. restTime is the period of later
	// checks without new snapshots: peers that do not answer also produce garbage.
	quietTime = time.Second
	restTime  = 5 * time.Second
	// littleGarbage is an amount in bytes that is not worth a collection. An eighth of the live heap is not, either.
	littleGarbage = 4 << 20
	// smallHeap is the size in bytes of the live heap with some hundred Services.
	smallHeap = 24 << 20
)

const (
	// startHeap is the size in bytes of the heap at which it is collected first; see Begin.
	startHeap = 32 << 20
	// firstHeap is that size where nothing is set (heapminimum of the runtime).
	firstHeap = 4 << 20
)

// Begin puts off the first collection until the heap has startHeap bytes, unless the user has set GOGC. A start of an
// agent makes less than that with some thousand connections and some hundred Services. It collects nothing then, while
// pods wait to be heard.
func Begin() {
	if os.Getenv("GOGC") != "" {
		return
	}
	before := debug.SetGCPercent(100 * startHeap / firstHeap)
	// After the first collection no more than usual may grow.
	runtime.AddCleanup(new([64]byte), func(percent int) { debug.SetGCPercent(percent) }, before)
}

// GiveBack returns unused memory to the system after snapshots, when no more changes come, until ctx is done. The
// runtime by itself collects only when the heap has doubled, or after two minutes. Packets allocate nothing, so
// without GiveBack an idle agent would keep the peak of memory that it needed to read the cluster. applied must get a
// value after every snapshot.
func GiveBack(ctx context.Context, applied <-chan struct{}) {
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	clean := uint64(0) // bytes allocated up to the last time
	pace := os.Getenv("GOGC") == ""
	if pace {
		defer debug.SetGCPercent(percent())
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-applied:
			if _, live := heapUse(); pace && live > 0 { // otherwise nothing was collected yet
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

// growth returns how much garbage may exist before the runtime collects it, in percent of the live heap. For a small
// heap this is the runtime's default. It is less for large clusters: their snapshots produce most of the garbage, and
// making snapshots costs much more than collecting twice as often.
func growth(live uint64) int {
	if live < smallHeap {
		return 100
	}
	return 40
}

// percent returns how much garbage may exist, as SetGCPercent does.
func percent() int {
	s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(s)
	return int(s[0].Value.Uint64())
}

// heapUse returns the bytes ever allocated on the heap, and the bytes found live by the last collection.
func heapUse() (allocated, live uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}
