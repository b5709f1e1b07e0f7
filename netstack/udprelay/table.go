package udprelay

import (
	"container/heap"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
)

// table finds conversations by the tuple of what their pod sends. find may be called at any time; calls of add and
// remove must not overlap.
type table struct {
	seed    uint64
	buckets []atomic.Pointer[conversation] // a power of two of them
}

// newTable makes a table with enough buckets for n conversations.
func newTable(n int) table {
	return table{seed: rand.Uint64(), buckets: make([]atomic.Pointer[conversation], 1<<bits.Len(uint(n)))}
}

func (t *table) bucket(k *packet.Tuple) *atomic.Pointer[conversation] {
	return &t.buckets[k.Hash(t.seed)&uint64(len(t.buckets)-1)]
}

func (t *table) find(k *packet.Tuple) *conversation {
	c := t.bucket(k).Load()
	for c != nil && c.tuple != *k {
		c = c.next.Load()
	}
	return c
}

func (t *table) add(c *conversation) {
	b := t.bucket(&c.tuple)
	c.next.Store(b.Load())
	b.Store(c)
}

// remove removes c, which is in the table. c.next stays set, because a reader may be standing on c.
func (t *table) remove(c *conversation) {
	at := t.bucket(&c.tuple)
	for at.Load() != c {
		at = &at.Load().next
	}
	at.Store(c.next.Load())
}

// order is a heap of conversations by known, which is the time of a conversation's last use or an earlier one.
type order []*conversation

func (o order) Len() int           { return len(o) }
func (o order) Less(i, j int) bool { return o[i].known < o[j].known }
func (o order) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].place, o[j].place = i, j
}

func (o *order) Push(x any) {
	c := x.(*conversation)
	c.place = len(*o)
	*o = append(*o, c)
}

func (o *order) Pop() any {
	last := len(*o) - 1
	c := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return c
}

// oldest returns the conversation that has been idle for longest, or nil when there is none. It is the first one whose
// known time is up to date, because all others were last used no earlier than their known times, which are later.
func (o *order) oldest() *conversation {
	for len(*o) > 0 {
		c := (*o)[0]
		used := c.used.Load()
		if used == c.known {
			return c
		}
		c.known = used
		heap.Fix(o, 0)
	}
	return nil
}
