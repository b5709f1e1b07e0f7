//go:build !amd64 && !arm64

package flow

import (
	"sync/atomic"
	"unsafe"
)

// fetch reads of two cache lines. Other processors wait for them no longer than their reads go on at once.
func fetch(line, next unsafe.Pointer) {
	atomic.LoadUint64((*uint64)(line))
	atomic.LoadUint64((*uint64)(next))
}
