//go:build !amd64 && !arm64

package flow

import (
	"sync/atomic"
	"unsafe"
)

// fetch reads from two cache lines. It waits for the reads, but most processors do several reads at once.
func fetch(line, next unsafe.Pointer) {
	atomic.LoadUint64((*uint64)(line))
	atomic.LoadUint64((*uint64)(next))
}
