package tcprelay

import "sync"

const (
	// headroom is what stands before each payload: headers of either family with the options of a SYN.
	headroom = 72
	// maxPayload is what one superframe carries at most, with the headers of either family.
	maxPayload = 65535 - 60
	chunkSize  = headroom + maxPayload
)

// chunk is memory for a stream's bytes: one superframe, or several small segments.
type chunk struct {
	buf  [chunkSize]byte
	used int // of buf
	done int // written, from the front; for what a pod said
	refs int // segments in it; for what a socket said
}

// The pool is LIFO per processor: a chunk that comes back goes out while it is still in the cache.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// newChunk gives a chunk that c is charged for, nil when there is no memory for it.
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
