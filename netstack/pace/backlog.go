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
	// queueTime is how long a packet waits at most for an attachment's limit. leastQueue and mostQueue bound the memory
	// for waiting packets, in bytes.
	queueTime  = 25 * time.Millisecond
	leastQueue = 4 * packet.MaxFrame
	mostQueue  = 8 << 20
)

// backlog holds packets that came faster than a limit allows. Without a backlog TCP would get only a small part of the
// rate: it sends superframes in bursts, those that the bucket does not hold would be lost, and TCP would wait for its
// timers.
type backlog struct {
	waiting atomic.Int64       // frames
	write   func(frame []byte) // writes a frame whose turn has come, one at a time

	mu      sync.Mutex // guards the fields below
	ring    ring
	timer   *time.Timer // nil before the first frame
	stopped bool
}

// Pass reports whether a packet of n bytes may go at once, and pays for it. No packet passes those that wait, except
// packets on credit, whose senders wait by themselves.
func (l *Limit) Pass(n int, credit bool) bool {
	return (credit || l.queue.waiting.Load() == 0) && l.take(n, credit)
}

// Enqueue queues a copy of p, as a frame for to. It returns false when too much waits already.
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
		return true // the timer is running already
	}
	if q.timer == nil {
		q.timer = time.AfterFunc(l.Wait(), l.drain)
	} else {
		q.timer.Reset(l.Wait())
	}
	return true
}

// drain writes the frames whose turn has come, in the timer's goroutine.
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
		q.mu.Unlock() // others may push meanwhile; only drain takes frames out
		q.write(frame)
		q.mu.Lock()
		q.ring.pop()
		q.waiting.Add(-1)
	}
}

// Waiting returns the number of packets that wait.
func (l *Limit) Waiting() int { return int(l.queue.waiting.Load()) }

// Stop drops the packets that wait; later ones are not queued.
func (l *Limit) Stop() {
	q := &l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	if q.timer != nil {
		q.timer.Stop()
	}
}

// ring is a queue of frames in memory of a fixed size. Each frame is contiguous, after its length.
type ring struct {
	buf        []byte
	head, tail int // of the oldest frame, and of the next to come; equal when there is none
}

const (
	lengthLen = 4
	// rewound, in place of a length, means that the next frame is at the beginning of the memory.
	rewound = 1<<32 - 1
)

// push returns room for n bytes; nil when there is none.
func (r *ring) push(n int) []byte {
	need, end := lengthLen+n, len(r.buf)
	if r.head == r.tail {
		r.head, r.tail = 0, 0
	}
	if r.tail < r.head {
		end = r.head - 1 // so that a full ring does not look empty
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

// peek returns the oldest frame; nil when there is none.
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

// pop removes the frame that peek returned.
func (r *ring) pop() { r.head += lengthLen + len(r.peek()) }
