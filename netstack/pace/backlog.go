package pace

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	// queueTime is how long a packet waits for an attachment's limit at most; leastQueue and mostQueue bound the memory
	// for that, in bytes.
	queueTime  = 25 * time.Millisecond
	leastQueue = 4 * packet.MaxFrame
	mostQueue  = 8 << 20
)

// backlog holds what came faster than a limit allows. Without one TCP gets a small part of the rate: whatever it sends
// at once, beyond what the bucket holds, would be lost, superframes at a time, and it would wait for its timers.
type backlog struct {
	waiting atomic.Int64       // frames
	write   func(frame []byte) // what has had its turn, one at a time

	mu      sync.Mutex // guards what follows
	ring    ring
	timer   *time.Timer // nil before the first frame
	stopped bool
}

// Pass reports whether a packet of n bytes may go at once, and pays for it. None does before those that wait, but those
// that go on credit, whose senders wait by themselves.
func (l *Limit) Pass(n int, credit bool) bool {
	return (credit || l.queue.waiting.Load() == 0) && l.take(n, credit)
}

// Enqueue has a copy of p wait for its turn, as a frame for to. It is false when too much waits already.
func (l *Limit) Enqueue(p *packet.Packet, to packet.MAC) bool {
	q := &l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	frame := q.ring.push(packet.HeadLen + p.Len())
	if frame == nil || q.stopped {
		return false
	}
	n := packet.HeadLen + copy(frame[packet.HeadLen:], p.IP)
	for _, part := range p.Tail {
		n += copy(frame[n:], part)
	}
	p.PutHead(frame, tap.RouterMAC, to)
	if q.waiting.Add(1) > 1 {
		return true // the timer is set
	}
	if q.timer == nil {
		q.timer = time.AfterFunc(l.Wait(), l.drain)
	} else {
		q.timer.Reset(l.Wait())
	}
	return true
}

// drain writes what has its turn, in the timer's goroutine.
func (l *Limit) drain() {
	q := &l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.stopped {
		frame := q.ring.peek()
		if frame == nil {
			return
		}
		if !l.take(len(frame)-packet.HeadLen, false) {
			q.timer.Reset(l.Wait())
			return
		}
		q.mu.Unlock() // others may push meanwhile; only we take out
		q.write(frame)
		q.mu.Lock()
		q.ring.pop()
		q.waiting.Add(-1)
	}
}

// Waiting is the number of packets that wait.
func (l *Limit) Waiting() int { return int(l.queue.waiting.Load()) }

// Stop forgets what waits.
func (l *Limit) Stop() {
	q := &l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	if q.timer != nil {
		q.timer.Stop()
	}
}

// ring is a queue of frames in memory of a fixed size. Each lies in one piece, behind its length.
type ring struct {
	buf        []byte
	head, tail int // of the oldest frame, and where the next goes; the same when there is none
}

const (
	lengthLen = 4
	// rewound stands for a length where the next frame is at the beginning of the memory.
	rewound = 1<<32 - 1
)

// push makes room for n bytes; nil when there is none.
func (r *ring) push(n int) []byte {
	need, end := lengthLen+n, len(r.buf)
	if r.head == r.tail {
		r.head, r.tail = 0, 0
	}
	if r.tail < r.head {
		end = r.head - 1 // so that full is not empty
	}
	if end-r.tail < need {
		if r.tail < r.head || r.head <= need {
			return nil
		}
		if len(r.buf)-r.tail >= lengthLen {
			binary.NativeEndian.PutUint32(r.buf[r.tail:], rewound)
		}
		r.tail = 0
	}
	binary.NativeEndian.PutUint32(r.buf[r.tail:], uint32(n))
	frame := r.buf[r.tail+lengthLen:][:n:n]
	r.tail += need
	return frame
}

// peek gives the oldest frame; nil when there is none.
func (r *ring) peek() []byte {
	if r.head == r.tail {
		return nil
	}
	if len(r.buf)-r.head < lengthLen || binary.NativeEndian.Uint32(r.buf[r.head:]) == rewound {
		r.head = 0
	}
	n := int(binary.NativeEndian.Uint32(r.buf[r.head:]))
	return r.buf[r.head+lengthLen:][:n:n]
}

// pop takes out what peek gave.
func (r *ring) pop() { r.head += lengthLen + len(r.peek()) }
