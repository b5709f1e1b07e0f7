package flowlog

import (
	"context"
	"encoding/binary"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

// filled returns a record whose every word follows from two numbers.
func filled(writer, n uint64) Record {
	var r Record
	w := (*[recordWords]uint64)(unsafe.Pointer(&r))
	for i := range w {
		w[i] = writer<<56 | uint64(i+1)<<48 | n
	}
	r.NameLen = 255
	return r
}

// numbers returns what filled was given. It fails the test if the record is not of one writing.
func numbers(t *testing.T, r *Record) (writer, n uint64) {
	t.Helper()
	writer, n = uint64(r.Time)>>56, uint64(r.Time)&(1<<48-1)
	if want := filled(writer, n); *r != want {
		t.Fatalf("a torn record: %x", *(*[recordWords]uint64)(unsafe.Pointer(r)))
	}
	return writer, n
}

func TestLayout(t *testing.T) {
	if size := unsafe.Sizeof(slot{}); size != 256 {
		t.Errorf("a slot has %d bytes, want 256", size)
	}
	if at := unsafe.Offsetof(Record{}.Name); at%8 != 0 || unsafe.Sizeof(Record{})-at != nameWords*8 {
		t.Errorf("the name begins at byte %d of %d, and is not the last %d words", at, unsafe.Sizeof(Record{}), nameWords)
	}
}

func TestLastRecords(t *testing.T) {
	for name, c := range map[string]struct{ size, written, last, first, lost uint64 }{
		"none":            {4, 0, 4, 0, 0},
		"fewer than room": {4, 3, 100, 0, 0},
		"some of them":    {4, 3, 2, 1, 0},
		"as many as room": {4, 4, 4, 0, 0},
		"a turn later":    {4, 9, 100, 5, 0},
		"only new ones":   {4, 9, 0, 9, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := New(int(c.size))
			for i := range c.written {
				r := filled(1, i)
				l.Write(&r)
			}
			reader := l.Read(int(c.last))
			want := c.first
			for r := (Record{}); reader.Next(&r); want++ {
				if _, n := numbers(t, &r); n != want {
					t.Fatalf("got record %d, want %d", n, want)
				}
			}
			if want != c.written || reader.Lost() != c.lost {
				t.Errorf("read up to %d of %d, lost %d of %d", want, c.written, reader.Lost(), c.lost)
			}
			if s := l.Stats(); s.Written != c.written || s.Overwritten != c.written-min(c.written, c.size) || s.Missed != 0 {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

// Many writers and readers at once: no reader sees half a record, one writer's records come in order, and each record
// is read or counted as lost.
func TestManyWritersAndReaders(t *testing.T) {
	const writers, each, size = 4, 20_000, 64
	l := New(size)
	var writing, reading sync.WaitGroup
	written := make(chan struct{})
	for lazy := range 3 {
		reader := l.Read(0)
		reading.Go(func() {
			var next [writers]uint64
			got, over := uint64(0), false
			for r := (Record{}); ; {
				if !reader.Next(&r) {
					if over {
						break
					}
					select {
					case <-written:
						over = true // what is there now is all
					default:
						runtime.Gosched()
					}
					continue
				}
				got++
				w, n := numbers(t, &r)
				if n < next[w] {
					t.Errorf("record %d of writer %d after record %d", n, w, next[w]-1)
					return
				}
				next[w] = n + 1
				for range lazy * 10 {
					runtime.Gosched()
				}
			}
			if got+reader.Lost() != writers*each {
				t.Errorf("read %d and lost %d of %d records", got, reader.Lost(), writers*each)
			}
		})
	}
	for w := range uint64(writers) {
		writing.Go(func() {
			for n := range uint64(each) {
				r := filled(w, n)
				l.Write(&r)
			}
		})
	}
	writing.Wait()
	close(written)
	reading.Wait()
	if s := l.Stats(); s.Written+s.Missed != writers*each || s.Overwritten != writers*each-size {
		t.Errorf("counted %+v", s)
	}
}

func TestWaitUntilWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(8)
		reader := l.Read(0)
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			l.Write(&Record{Event: Begun, Proto: packet.TCP})
		}()
		var r Record
		if !reader.Wait(t.Context(), &r) || r.Event != Begun || l.At(&r) != began.Add(time.Second) {
			t.Errorf("got %v at %v", r.Event, l.At(&r).Sub(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if reader.Wait(ctx, &r) {
			t.Errorf("got %v, and nothing was written", r.Event)
		}
	})
}

func TestNames(t *testing.T) {
	l := New(2)
	reader := l.Read(0)
	for given, want := range map[string]string{
		"web.default.svc.cluster.local.": "web.default.svc.cluster.local.",
		strings.Repeat("x", MaxName):     strings.Repeat("x", MaxName),
		strings.Repeat("x", MaxName+1):   strings.Repeat("x", MaxName) + "…",
		strings.Repeat("x", 1000):        strings.Repeat("x", MaxName) + "…",
		"":                               "",
	} {
		r := Record{Event: Resolved}
		r.SetName(given)
		l.Write(&r)
		var got Record
		if !reader.Next(&got) || got.NameText() != want {
			t.Errorf("%q became %q", given, got.NameText())
		}
	}
}

func TestWriteAllocatesNothing(t *testing.T) {
	l := New(16)
	if n := testing.AllocsPerRun(100, func() {
		r := Record{Event: Ended, Proto: packet.UDP}
		l.Write(&r)
	}); n != 0 {
		t.Errorf("a record allocates %v times", n)
	}
}

// twin is a Log that is slow and plain: it keeps all records.
type twin struct {
	size    uint64
	records []twinRecord
	owner   []uint64 // by slot, one more than the last position that claimed it
}

type twinRecord struct{ done, missed bool }

func (w *twin) begin() (at uint64, ok bool) {
	at = uint64(len(w.records))
	owner := &w.owner[at%w.size]
	ok = *owner == 0 || w.records[*owner-1].done
	if ok {
		*owner = at + 1
	}
	w.records = append(w.records, twinRecord{missed: !ok})
	return at, ok
}

// next returns the position of the record that a reader at next gets, and how many it loses.
func (w *twin) next(next uint64) (at, lost uint64, ok bool) {
	for at = next; at < uint64(len(w.records)); at++ {
		r := w.records[at]
		gone := at+w.size < uint64(len(w.records)) || r.missed
		switch {
		case !gone && r.done:
			return at, at - next, true
		case !gone:
			return at, at - next, false // it is being written
		}
	}
	return at, at - next, false
}

// FuzzTwin has writers that stop in the middle, and readers, one step at a time.
func FuzzTwin(f *testing.F) {
	f.Add([]byte{0, 0, 2, 0, 2})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 2, 3, 0, 2, 2, 2})
	f.Add([]byte{1, 1, 3, 2, 0, 0, 0, 0, 3, 2, 6, 6, 4, 6, 6})
	f.Fuzz(func(t *testing.T, steps []byte) {
		const size = 4
		l, model := New(size), twin{size: size, owner: make([]uint64, size)}
		readers := []*Reader{l.Read(0), l.Read(0)}
		var want [2]struct{ next, lost uint64 }
		var stopped []uint64 // positions that are being written
		begin := func() (uint64, bool) {
			at := l.head.Add(1) - 1
			s := &l.slots[at%size]
			claimed := s.claim(at)
			if !claimed {
				l.miss(s, at)
			}
			if p, ok := model.begin(); p != at || ok != claimed {
				t.Fatalf("position %d is claimed: %v, want %d: %v", at, claimed, p, ok)
			}
			return at, claimed
		}
		end := func(at uint64) {
			r := filled(1, at)
			s := &l.slots[at%size]
			s.put(&r)
			s.state.Store(done(at))
			model.records[at].done = true
		}
		for _, step := range steps {
			switch step % 4 {
			case 0:
				if at, ok := begin(); ok {
					end(at)
				}
			case 1:
				if at, ok := begin(); ok {
					stopped = append(stopped, at)
				}
			case 3:
				if n := len(stopped); n > 0 {
					i := int(step/4) % n
					end(stopped[i])
					stopped = append(stopped[:i], stopped[i+1:]...)
				}
			case 2:
				i := int(step/4) % len(readers)
				reader, w := readers[i], &want[i]
				at, lost, ok := model.next(w.next)
				w.lost += lost
				if w.next = at; ok {
					w.next++
				}
				var r Record
				if got := reader.Next(&r); got != ok || reader.Lost() != w.lost {
					t.Fatalf("reader %d: %v, lost %d, want %v, %d", i, got, reader.Lost(), ok, w.lost)
				}
				if ok {
					if _, n := numbers(t, &r); n != at {
						t.Fatalf("reader %d: record %d, want %d", i, n, at)
					}
				}
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	for name, c := range map[string]struct {
		text    string
		readers int
		time    time.Duration
	}{"flow": {}, "name": {text: "web.default.svc.cluster.local."}, "reader": {readers: 1}, "clock read already": {time: 1}} {
		b.Run(name, func(b *testing.B) {
			l := New(0)
			ctx, cancel := context.WithCancel(b.Context())
			var reading sync.WaitGroup
			for range c.readers {
				reader := l.Read(0)
				reading.Go(func() {
					for r := (Record{}); reader.Wait(ctx, &r); {
					}
				})
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r := Record{Time: c.time, Event: Begun, Proto: packet.TCP, Rule: uint64(i)}
				if c.text != "" {
					r.SetName(c.text)
				}
				binary.NativeEndian.PutUint64(r.Src.Addr[8:], uint64(i))
				l.Write(&r)
			}
			cancel()
			reading.Wait()
		})
	}
	b.Run("parallel", func(b *testing.B) {
		l := New(0)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				r := Record{Event: Begun, Proto: packet.TCP}
				l.Write(&r)
			}
		})
	})
}
