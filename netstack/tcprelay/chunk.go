package tcprelay

import "sync"

const (
	// headroom is the room for headers before each payload. It fits those of either family with the options of a SYN.
	headroom = 72
	// maxPayload is the largest payload of one superframe with the headers of either family.
	maxPayload = 65535 - 60
	chunkSize  = headroom + maxPayload
)

// chunk is memory for a stream's bytes: one superframe, or several small segments.
type chunk struct {
	buf  [chunkSize]byte
	used int // bytes of buf in use
	done int // bytes at the front that were written to the socket; for the pod's stream
	refs int // segments in the chunk; for the socket's stream
}

// The pool is LIFO on each processor, so a chunk is used again while it is still in the cache.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// newChunk returns a chunk and charges it to c's account. It returns nil when there is no memory for it.
func (c *conn) newChunk() *chunk {
	if !c.account.take(chunkSize) {
		return nil
	}
	k := chunks.Get().(*chunk)
	k.used, k.done, k.refs = 0, 0, 0
	return k
}

func (c *conn) free(k *chunk) {
	chunks.Put(k)
	c.account.give(chunkSize)
}
