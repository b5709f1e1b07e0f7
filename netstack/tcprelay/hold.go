package tcprelay

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
)

// Hold lets connections outlive the Relay and its process: somebody else has a duplicate of each host socket, and
// shared memory has the few numbers that the next Relay needs besides what the kernel knows of the socket (doc.go).
type Hold struct {
	// Memory has a slot for each connection, of kind MemoryKind. At most Most of its slots are used.
	Memory *memo.Memo
	Most   int
	// Keep makes somebody hold a duplicate of each of the sockets, under the numbers of their slots, in place of what
	// was held under these. When it returns nil, they are held, also if this process ends at once. It does not block:
	// while it cannot, it returns ErrKeepLater. After another error the sockets are not held. At most MaxKept come at
	// once.
	Keep func(slots []uint32, fds []int) error
	// Release says that what is held under a slot is not needed any longer. It does not block, and may be late.
	Release func(slot uint32)
	// Found has the sockets that were held when this process began. They belong to the Relay.
	Found map[uint32]int
}

const (
	// MemoryKind is the kind of the Memory of a Hold. It changes whenever the meaning of a word does.
	MemoryKind = 0x7463_7001 // "tcp", 1
	// MaxKept is how many sockets Keep gets at once at most.
	MaxKept = 128
)

// holding says whether somebody holds a duplicate of a connection's socket.
type holding uint8

const (
	unheld  holding = iota
	queued          // it waits to be kept
	sending         // it is being kept
	held
	over // the connection has ended
)

// holder keeps the sockets of a Relay's connections. Whoever comes first keeps those of others, too, that come
// meanwhile: so many connections that open at once cost few calls of Keep.
type holder struct {
	Hold
	resumed  bool       // Resume was called
	revived  []revived  // by Resume, until GoOn
	mu       sync.Mutex // guards what follows, and holding and orphan of conns; not held while sockets are kept
	free     []uint32   // slots that were used before and are free, the last one first
	fresh    uint32     // slots from here on were never used
	taken    map[uint32]bool
	queue    []*conn
	flushing bool
	helds    int     // connections that are held
	missed   []*conn // those that are open and were not kept, as there was too much to keep; until retry
	// Only whoever flushes uses these. hung says that a batch was given up, and nothing was kept since.
	hung  bool
	batch []*conn
	slots []uint32
	fds   []int
}

func newHolder(h Hold) *holder { return &holder{Hold: h, taken: map[uint32]bool{}} }

// noSlot is the slot of a connection that has none.
const noSlot = ^uint32(0)

// slot returns a free slot, or noSlot.
func (h *holder) slot() uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.free); n > 0 {
		s := h.free[n-1]
		h.free = h.free[:n-1]
		return s
	}
	for int(h.fresh) < min(h.Most, h.Memory.Len()) {
		h.fresh++
		if s := h.fresh - 1; !h.taken[s] {
			return s
		}
		delete(h.taken, h.fresh-1)
	}
	return noSlot
}

// reserve takes a slot that a connection of the Relay before has. It is called before slot.
func (h *holder) reserve(s uint32) {
	h.taken[s] = true
	h.helds++
}

// put has the socket of c held. c is noted as kept when that has been done, or has failed.
func (h *holder) put(c *conn) {
	h.mu.Lock()
	c.holding = queued
	h.enqueue(c, true)
}

// enqueue adds c to the queue, if it is wanted there, and flushes the queue unless somebody does. The caller holds mu,
// which enqueue releases.
func (h *holder) enqueue(c *conn, wanted bool) {
	if wanted {
		h.queue = append(h.queue, c)
	}
	first := wanted && !h.flushing
	h.flushing = h.flushing || wanted
	h.mu.Unlock()
	if first {
		h.flush()
	}
}

// flush keeps the sockets of the queue. Others wait for the caller, so what comes meanwhile is kept by a goroutine.
func (h *holder) flush() {
	if h.next() && h.keep() && h.next() {
		go h.flushOn()
	}
}

// flushOn keeps a batch, and all that follows.
func (h *holder) flushOn() {
	for h.keep() && h.next() {
	}
}

// keep keeps the batch. It returns false when that is done later.
func (h *holder) keep() bool {
	err := h.Keep(h.slots, h.fds)
	if err == ErrKeepLater && !h.hung {
		go h.flushLater()
		return false
	}
	h.hung = h.hung && err != nil
	h.done(err)
	return true
}

const (
	// keepTries is how often Keep is tried, a millisecond apart, before connections go on that are not held. Later ones
	// do not wait for somebody who hangs: Keep is tried once for each batch, until it succeeds.
	keepTries = 200
	// retryAfter is when Keep is tried again for connections that went on.
	retryAfter = 100 * time.Millisecond
)

// flushLater is flush after an attempt that came too early.
func (h *holder) flushLater() {
	err := ErrKeepLater
	for n := 0; err == ErrKeepLater && n < keepTries; n++ {
		pause()
		err = h.Keep(h.slots, h.fds)
	}
	h.hung = err == ErrKeepLater
	h.done(err)
	if h.next() {
		h.flushOn()
	}
}

// next takes the next batch out of the queue. It returns false when there is none, and then nobody flushes.
func (h *holder) next() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.batch, h.slots, h.fds = h.batch[:0], h.slots[:0], h.fds[:0]
	n := 0
	for _, c := range h.queue {
		if len(h.batch) == MaxKept {
			break
		}
		if n++; c.holding != queued {
			continue // it has ended
		}
		c.holding = sending
		h.batch, h.slots, h.fds = append(h.batch, c), append(h.slots, c.slot), append(h.fds, c.fd)
	}
	rest := copy(h.queue, h.queue[n:])
	clear(h.queue[rest:])
	h.queue = h.queue[:rest]
	h.flushing = len(h.batch) > 0
	return h.flushing
}

// done records that the batch is held, or why not, and lets its connections go on.
func (h *holder) done(err error) {
	h.mu.Lock()
	for i, c := range h.batch {
		c.holding = unheld
		if err == nil {
			c.holding = held
			h.helds++
		}
		switch {
		case c.orphan: // it has ended meanwhile
			h.forget(c, err == nil)
			unix.Close(c.fd)
			h.batch[i] = nil
		case err == ErrKeepLater:
			if len(h.missed) == 0 {
				time.AfterFunc(retryAfter, h.retry)
			}
			h.missed = append(h.missed, c)
		}
	}
	h.mu.Unlock()
	for _, c := range h.batch {
		if c != nil {
			c.note(kepts)
			c.pump()
		}
	}
}

// retry has those kept that were missed, and still go on.
func (h *holder) retry() {
	h.mu.Lock()
	missed := h.missed
	h.missed = nil
	any := false
	for _, c := range missed {
		if c.holding == unheld {
			c.holding, any = queued, true
			h.queue = append(h.queue, c)
		}
	}
	first := any && !h.flushing
	h.flushing = h.flushing || any
	h.mu.Unlock()
	if first {
		h.flush()
	}
}

// forget makes the slot of c free. The caller holds mu.
func (h *holder) forget(c *conn, release bool) {
	h.Memory.Clear(c.slot)
	if release {
		h.Release(c.slot)
	}
	h.free = append(h.free, c.slot)
	if c.holding == held {
		h.helds--
	}
	c.holding = over
}

// end forgets c, which has ended. It reports whether the caller closes the socket: while the socket is being kept, its
// number must not become another's.
func (h *holder) end(c *conn) (closes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.holding == sending {
		h.Memory.Clear(c.slot)
		c.orphan = true
		return false
	}
	h.forget(c, c.holding == held)
	return true
}

// leaves reports whether c goes on in the next process: its socket is held.
func (h *holder) leaves(c *conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.holding == held
}

// count returns the number of connections whose sockets are held.
func (h *holder) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.helds
}

// again has the socket of c held by somebody new, if it may be held.
func (h *holder) again(c *conn) {
	h.mu.Lock()
	is := c.holding == held || c.holding == unheld
	if is {
		if c.holding == held {
			h.helds--
		}
		c.holding = queued
	}
	h.enqueue(c, is)
}

// settle waits until what is in the queue is held, or has failed.
func (h *holder) settle() {
	for {
		h.mu.Lock()
		busy := h.flushing
		h.mu.Unlock()
		if !busy {
			return
		}
		pause()
	}
}
