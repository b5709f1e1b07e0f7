package overlay

import (
	"slices"
	"sync"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// ringSize is how many superframes may wait for WireGuard: enough to keep it busy while the next ones are read from
	// TAPs, and few enough not to add noticeable delay (2 MiB, about 5 ms at 3 Gb/s).
	ringSize = 32
	// controlSize is how many probes and answers to probes may wait; further ones are dropped.
	controlSize = 128
	// quantum is how many bytes of IP a lane may send in its turn. It is the size of the largest superframe.
	quantum = 65535
	// laneShare is how many buffers a lane may hold for each free one. A lane alone gets two thirds of the ring, and
	// there is always room left for another one.
	laneShare = 2
)

// entry is one superframe on its way. pkt is a copy of the sender's packet; its bytes lie in buf.
type entry struct {
	pkt  packet.Packet
	via  packet.Encap
	wrap bool // via is set
	peer *peer
	buf  []byte
}

// lane is the queue of packets from one source address to one peer. The ring serves lanes in turn, so that no packet
// waits behind those of another pod or to another node.
type lane struct {
	peer *peer
	src  packet.Addr

	queue   []int // of slots, in order; at most ringSize
	held    int   // buffers that are queued, or that senders are about to queue
	senders int   // goroutines that are asking for a buffer
	waiting int   // those of senders that wait for room and were not woken yet
	room    sync.Cond

	credit int  // bytes the lane may still send in this turn
	turn   bool // the lane has its turn
}

// ring hands superframes from many senders to the one reader. Bytes are not copied: a sender swaps its full buffer for
// a free one, so that the ring and its reader always have ringSize buffers.
//
// The reader serves lanes by deficit round robin. A sender waits while its own lane holds more than its share.
type ring struct {
	waits    func(begin bool) // called when a sender begins (true) and ends (false) to wait
	mu       sync.Mutex
	notEmpty sync.Cond

	// mu guards all below.
	free    [ringSize][]byte
	nfree   int
	slots   [ringSize]entry
	unused  [ringSize]int // slots without an entry
	nunused int
	lanes   []*lane // in use, in the order of their turns
	spare   []*lane
	at      int // the lane that has its turn or is next
	wakeAt  int // the lane whose senders are looked at next
	queued  int // entries in all lanes
	ctl     [controlSize]echo
	ctlHead int
	nctl    int
	waiting bool // the reader waits
	closed  bool
}

func newRing(waits func(begin bool)) *ring {
	if waits == nil {
		waits = func(bool) {}
	}
	r := &ring{waits: waits, nfree: ringSize, nunused: ringSize}
	r.notEmpty.L = &r.mu
	slab := make([]byte, ringSize*packet.MaxFrame)
	for i := range r.free {
		r.free[i], slab = slab[:packet.MaxFrame:packet.MaxFrame], slab[packet.MaxFrame:]
		r.unused[i] = i
	}
	return r
}

// lane finds or makes the lane of a source and a peer. There are few lanes at a time: only those in use.
func (r *ring) lane(to *peer, src packet.Addr) *lane {
	for _, l := range r.lanes {
		if l.peer == to && l.src == src {
			return l
		}
	}
	var l *lane
	if n := len(r.spare); n > 0 {
		l, r.spare = r.spare[n-1], r.spare[:n-1]
	} else {
		l = &lane{queue: make([]int, 0, ringSize)}
		l.room.L = &r.mu
	}
	l.peer, l.src = to, src
	r.lanes = append(r.lanes, l)
	return l
}

// retire puts the i-th lane away unless it is in use.
func (r *ring) retire(i int) {
	l := r.lanes[i]
	if l.held > 0 || l.senders > 0 {
		return
	}
	r.lanes = slices.Delete(r.lanes, i, i+1)
	if r.at > i {
		r.at--
	}
	l.peer, l.credit, l.turn = nil, 0, false
	r.spare = append(r.spare, l)
}

// hasRoom reports whether a sender of l may take a buffer.
func (r *ring) hasRoom(l *lane) bool { return l.held < laneShare*r.nfree }

// take waits for a free buffer for a packet from src to a peer. It returns the buffer and the lane to put it in; nil
// once the ring is closed.
func (r *ring) take(to *peer, src packet.Addr) ([]byte, *lane) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.takeLocked(to, src)
}

func (r *ring) takeLocked(to *peer, src packet.Addr) ([]byte, *lane) {
	if r.closed {
		return nil, nil
	}
	l := r.lane(to, src)
	l.senders++
	for !r.hasRoom(l) {
		l.waiting++
		r.waits(true)
		l.room.Wait() // wakeSenders reduces waiting
		r.waits(false)
		if r.closed {
			return nil, nil
		}
	}
	l.senders--
	l.held++
	r.nfree--
	buf := r.free[r.nfree]
	r.wakeSenders() // there may be room for more than this sender
	return buf, l
}

// wakeSenders wakes one sender whose lane has room now. It begins with the lane after the one that it looked at last.
func (r *ring) wakeSenders() {
	for range r.lanes {
		if r.wakeAt++; r.wakeAt >= len(r.lanes) {
			r.wakeAt = 0
		}
		if l := r.lanes[r.wakeAt]; l.waiting > 0 && r.hasRoom(l) {
			l.waiting--
			l.room.Signal()
			return
		}
	}
}

// put queues e in the lane that take returned with the buffer.
func (r *ring) put(l *lane, e *entry) {
	r.mu.Lock()
	r.putLocked(l, e)
	r.mu.Unlock()
}

func (r *ring) putLocked(l *lane, e *entry) {
	r.nunused--
	slot := r.unused[r.nunused]
	r.slots[slot] = *e
	l.queue = append(l.queue, slot)
	r.queued++
	r.wakeLocked()
}

func (r *ring) wakeLocked() {
	if r.waiting {
		r.notEmpty.Signal()
	}
}

// exchange queues e with its buffer, and returns a free buffer for it. It waits for one; nil once the ring is closed.
func (r *ring) exchange(e *entry) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, l := r.takeLocked(e.peer, e.pkt.Tuple.Src)
	if b != nil {
		r.putLocked(l, e)
	}
	return b
}

// control queues a probe or an answer to one. It reports false when too many wait or the ring is closed.
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

// next waits for something to send, and for an entry also until hold reports false. It fills either e or c and reports
// which; neither once the ring is closed. With block false it does not wait, and may fill neither.
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
		if r.queued > 0 && !hold() {
			r.pop(e)
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

// pop takes the next entry by deficit round robin (Shreedhar and Varghese, 1995). There must be one.
func (r *ring) pop(e *entry) {
	for ; ; r.at++ {
		if r.at >= len(r.lanes) {
			r.at = 0
		}
		l := r.lanes[r.at]
		if len(l.queue) == 0 {
			continue
		}
		if !l.turn {
			l.turn = true
			l.credit += quantum
		}
		slot := l.queue[0]
		size := len(r.slots[slot].pkt.IP)
		if size > l.credit {
			l.turn = false
			continue
		}
		l.credit -= size
		*e = r.slots[slot]
		r.slots[slot] = entry{}
		r.unused[r.nunused] = slot
		r.nunused++
		r.queued--
		l.queue = l.queue[:copy(l.queue, l.queue[1:])]
		l.held--
		if len(l.queue) == 0 { // an empty lane loses the rest of its credit, and its next turn comes after the others'
			l.credit, l.turn = 0, false
			i := r.at
			r.at++
			r.retire(i)
		}
		r.wakeSenders()
		return
	}
}

// wake makes a waiting reader check again whether there is something to send.
func (r *ring) wake() {
	r.mu.Lock()
	r.wakeLocked()
	r.mu.Unlock()
}

// release returns the buffer of an entry after use.
func (r *ring) release(buf []byte) {
	r.mu.Lock()
	r.free[r.nfree] = buf
	r.nfree++
	r.wakeSenders()
	r.mu.Unlock()
}

// close ends all waiting, of senders and of the reader.
func (r *ring) close() {
	r.mu.Lock()
	r.closed = true
	for _, l := range r.lanes {
		l.room.Broadcast()
	}
	r.mu.Unlock()
	r.notEmpty.Broadcast()
}
