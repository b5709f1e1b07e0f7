package impair

import (
	"container/heap"
	"sync"
	"time"
)

// maxQueued bounds the bytes held back in one direction: a second at 0.5 Gb/s.
const maxQueued = 64 << 20

// queue holds frames until their time has come and writes them in the order of their times. Frames with equal times are
// written in the order in which they came.
type queue struct {
	write func(frame []byte)
	wake  chan struct{} // has room for one: something changed
	mu    sync.Mutex
	// mu guards the fields below.
	frames frames
	bytes  int
	next   uint64
	closed bool
}

type held struct {
	at    time.Duration
	seq   uint64
	frame []byte
}

func newQueue(write func([]byte)) *queue {
	return &queue{write: write, wake: make(chan struct{}, 1)}
}

// push adds a copy of frame, to be written at the given time. It returns false when the queue is full.
func (q *queue) push(at time.Duration, frame []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes+len(frame) > maxQueued {
		return false
	}
	heap.Push(&q.frames, held{at, q.next, append([]byte(nil), frame...)})
	q.next++
	q.bytes += len(frame)
	if q.frames[0].seq == q.next-1 {
		q.signal()
	}
	return true
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close makes run return. Frames still in the queue are dropped.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

// run writes frames until close. Their times count from start.
func (q *queue) run(start time.Time) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		frame, wait, ok := q.pop(time.Since(start))
		if !ok {
			return
		}
		if frame != nil {
			q.write(frame)
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-q.wake:
		}
	}
}

// pop returns the next frame that is due, or nil and how long to wait. ok is false after close.
func (q *queue) pop(now time.Duration) (frame []byte, wait time.Duration, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, 0, false
	}
	if len(q.frames) == 0 {
		return nil, time.Hour, true
	}
	if first := q.frames[0].at; first > now {
		return nil, first - now, true
	}
	f := heap.Pop(&q.frames).(held).frame
	q.bytes -= len(f)
	return f, 0, true
}

// frames is a heap (container/heap), ordered by time and then by arrival.
type frames []held

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	return f[i].at < f[j].at || f[i].at == f[j].at && f[i].seq < f[j].seq
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(held)) }
func (f *frames) Pop() any {
	old := *f
	last := old[len(old)-1]
	old[len(old)-1] = held{}
	*f = old[:len(old)-1]
	return last
}
