package flowlog

import (
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"
)

// Log is the ring. Its methods are safe for concurrent use.
type Log struct {
	slots []slot
	start time.Time
	_     [64]byte      // keeps head, which every record changes, away from what writers only read
	head  atomic.Uint64 // the position of the next record
	_     [56]byte

	missed atomic.Uint64
}

// DefaultRecords is how many records a node keeps if nobody says otherwise; they take a megabyte.
const DefaultRecords = 4096

// New makes a Log of this many records, rounded up to a power of two; 0 means DefaultRecords. A record takes 256 bytes.
func New(records int) *Log {
	if records <= 0 {
		records = DefaultRecords
	}
	return &Log{slots: make([]slot, 1<<bits.Len(uint(records-1))), start: time.Now()}
}

// Write puts a record into the log, in place of the oldest one. r is borrowed; Write sets its Time if that is 0.
func (l *Log) Write(r *Record) {
	if r.Time == 0 {
		r.Time = l.Now()
	}
	at := l.head.Add(1) - 1
	s := &l.slots[at&uint64(len(l.slots)-1)]
	if !s.claim(at) {
		l.miss(s, at)
		return
	}
	s.put(r)
	s.state.Store(done(at))
}

// Now returns the time that a record of this moment has.
func (l *Log) Now() time.Duration { return time.Since(l.start) }

// miss notes that the record of a position is not in the log, so that readers do not wait for it.
func (l *Log) miss(s *slot, at uint64) {
	l.missed.Add(1)
	for {
		was := s.missed.Load()
		if was > at || s.missed.CompareAndSwap(was, at+1) {
			return
		}
	}
}

// At returns the time of a record by the clock on the wall, as that is now.
func (l *Log) At(r *Record) time.Time {
	now := time.Now()
	return now.Add(r.Time - now.Sub(l.start))
}

// Stats says what the Log has had to do.
type Stats struct {
	Capacity int
	// Written counts records since New, and Overwritten those of them that made room for others.
	Written, Overwritten uint64
	// Missed counts records that could not be written, since another writer was in the way.
	Missed uint64
}

// Stats returns the counts.
func (l *Log) Stats() Stats {
	n, head := uint64(len(l.slots)), l.head.Load()
	s := Stats{Capacity: len(l.slots), Missed: l.missed.Load()}
	s.Written = head - min(s.Missed, head)
	s.Overwritten = head - min(n, head)
	return s
}

// slot is the place of one record: four cache lines.
type slot struct {
	state  atomic.Uint64 // 0, then writing or done of the last position that claimed the slot
	missed atomic.Uint64 // one more than the last position whose record is missed here
	words  [recordWords]uint64
}

const (
	recordWords = int(unsafe.Sizeof(Record{}) / 8)
	nameWords   = MaxName / 8
)

// The states of a slot. They only grow.
func writing(at uint64) uint64 { return 2*at + 1 }
func done(at uint64) uint64    { return 2*at + 2 }

// claim makes the slot that of a position. It returns false if another writer has it, or had it for a later position.
func (s *slot) claim(at uint64) bool {
	was := s.state.Load()
	return was&1 == 0 && was < writing(at) && s.state.CompareAndSwap(was, writing(at))
}

// put writes the record's words: the state orders them, and get sees whether it has changed.
//
//go:norace
func (s *slot) put(r *Record) {
	w := (*[recordWords]uint64)(unsafe.Pointer(r))
	if r.NameLen > 0 {
		s.words = *w
		return
	}
	*(*[recordWords - nameWords]uint64)(s.words[:]) = *(*[recordWords - nameWords]uint64)(w[:])
}

// get copies the record, and reports whether it is that of position at, and whole. The words are read atomically, so
// that no processor reads them after it has read the state.
func (s *slot) get(at uint64, into *Record) bool {
	if s.state.Load() != done(at) {
		return false
	}
	w := (*[recordWords]uint64)(unsafe.Pointer(into))
	for i := range w {
		w[i] = atomic.LoadUint64(&s.words[i])
	}
	return s.state.Load() == done(at)
}
