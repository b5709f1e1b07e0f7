package flowlog

import (
	"context"
	"time"
)

// Reader reads records in the order of their positions, which is that of their times but for what several writers do at
// the same moment. Writers do not know of it. One goroutine at a time may use it.
type Reader struct {
	log  *Log
	next uint64 // the position of the next record
	lost uint64
}

// Read returns a Reader that begins with the last records, as many as there are; with 0, it begins with those that are
// still to come.
func (l *Log) Read(last int) *Reader {
	head := l.head.Load()
	return &Reader{log: l, next: head - min(uint64(max(last, 0)), uint64(len(l.slots)), head)}
}

// Next copies the next record. It returns false when there is none at the moment. What was in the name of into beyond
// NameLen means nothing.
func (r *Reader) Next(into *Record) bool {
	n := uint64(len(r.log.slots))
	for {
		head := r.log.head.Load()
		if r.next >= head {
			return false
		}
		if oldest := head - min(n, head); r.next < oldest {
			r.lose(oldest - r.next)
		}
		s := &r.log.slots[r.next&(n-1)]
		switch {
		case s.get(r.next, into):
			r.next++
			return true
		case s.state.Load() > done(r.next) || s.missed.Load() > r.next:
			r.lose(1)
		case s.state.Load() < done(r.next):
			return false // it is being written
		}
	}
}

// pollEvery is how often Wait looks for a record. A writer that woke readers would pay for them.
const pollEvery = 20 * time.Millisecond

// Wait is Next, but waits for a record until ctx ends; then it returns false.
func (r *Reader) Wait(ctx context.Context, into *Record) bool {
	if r.Next(into) {
		return true
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
			if r.Next(into) {
				return true
			}
		}
	}
}

// Lost returns how many records have been lost to this Reader so far, because it was too slow or they were missed.
func (r *Reader) Lost() uint64 { return r.lost }

func (r *Reader) lose(n uint64) {
	r.lost += n
	r.next += n
}
