package overlay

import (
	"sync"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// ringSize is how many superframes wait for WireGuard: enough to keep it busy while a port's goroutine reads the
	// next ones, few enough not to add noticeable delay (2 MiB, about 5 ms at 3 Gb/s).
	ringSize = 32
	// controlSize bounds the waiting probes and answers to probes; more are dropped.
	controlSize = 128
)

// entry is one superframe on its way. pkt is a copy whose bytes lie in buf.
type entry struct {
	pkt  packet.Packet
	via  packet.Encap
	wrap bool // via is set
	peer *peer
	buf  []byte
}

// ring hands superframes from many senders to the one reader. Buffers change hands, bytes are not copied: a sender
// swaps its full buffer for a free one, so that there are always ringSize buffers here, free or waiting.
type ring struct {
	mu       sync.Mutex
	notEmpty sync.Cond
	notFull  sync.Cond

	// mu guards all below.
	free    [ringSize][]byte
	nfree   int
	queue   [ringSize]entry
	head, n int
	ctl     [controlSize]echo
	ctlHead int
	nctl    int
	waiting bool // the reader waits
	closed  bool
}

func newRing() *ring {
	r := &ring{nfree: ringSize}
	r.notEmpty.L, r.notFull.L = &r.mu, &r.mu
	slab := make([]byte, ringSize*packet.MaxFrame)
	for i := range r.free {
		r.free[i], slab = slab[:packet.MaxFrame:packet.MaxFrame], slab[packet.MaxFrame:]
	}
	return r
}

// take gives a free buffer, waiting for one; nil once closed.
func (r *ring) take() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.takeLocked()
}

func (r *ring) takeLocked() []byte {
	for r.nfree == 0 && !r.closed {
		r.notFull.Wait()
	}
	if r.closed {
		return nil
	}
	r.nfree--
	return r.free[r.nfree]
}

// put queues e. The caller took a buffer before, so there is room.
func (r *ring) put(e *entry) {
	r.mu.Lock()
	r.putLocked(e)
	r.mu.Unlock()
}

func (r *ring) putLocked(e *entry) {
	r.queue[(r.head+r.n)%ringSize] = *e
	r.n++
	r.wakeLocked()
}

func (r *ring) wakeLocked() {
	if r.waiting {
		r.notEmpty.Signal()
	}
}

// exchange queues e, which owns its buffer, and gives a free one for it; nil once closed.
func (r *ring) exchange(e *entry) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.takeLocked()
	if b != nil {
		r.putLocked(e)
	}
	return b
}

// control queues a probe or an answer; false when there are too many.
func (r *ring) control(e echo) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nctl == controlSize || r.closed {
		return false
	}
	r.ctl[(r.ctlHead+r.nctl)%controlSize] = e
	r.nctl++
	r.wakeLocked()
	return true
}

// next waits for something to send, with hold also until the tunnel has room for more data. It fills either c or e
// and tells which; neither once closed. With block false it does not wait.
func (r *ring) next(e *entry, c *echo, block bool, hold func() bool) (isEntry, isControl bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.closed {
			return false, false
		}
		if r.nctl > 0 {
			*c = r.ctl[r.ctlHead]
			r.ctlHead = (r.ctlHead + 1) % controlSize
			r.nctl--
			return false, true
		}
		if r.n > 0 && !hold() {
			*e = r.queue[r.head]
			r.queue[r.head] = entry{}
			r.head = (r.head + 1) % ringSize
			r.n--
			return true, false
		}
		if !block {
			return false, false
		}
		r.waiting = true
		r.notEmpty.Wait()
		r.waiting = false
	}
}

// wake makes a waiting reader look again.
func (r *ring) wake() {
	r.mu.Lock()
	r.wakeLocked()
	r.mu.Unlock()
}

// release gives the buffer of an entry back after use.
func (r *ring) release(buf []byte) {
	r.mu.Lock()
	r.free[r.nfree] = buf
	r.nfree++
	r.notFull.Signal()
	r.mu.Unlock()
}

// close ends all waiting.
func (r *ring) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.notEmpty.Broadcast()
	r.notFull.Broadcast()
}
