package datagram

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Sizes of a datagram's payload in bytes.
const (
	HeaderLen = 16
	MaxLen    = 65507 // over IPv4
)

// Header is the beginning of every datagram.
type Header struct {
	Stream, Sequence uint64
}

// Put writes h to b, which must have at least HeaderLen bytes.
func (h Header) Put(b []byte) {
	binary.BigEndian.PutUint64(b, h.Stream)
	binary.BigEndian.PutUint64(b[8:], h.Sequence)
}

// ParseHeader returns false when b is too short.
func ParseHeader(b []byte) (Header, bool) {
	if len(b) < HeaderLen {
		return Header{}, false
	}
	return Header{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, true
}

// Report says what arrived of a stream.
type Report struct {
	Packets, Bytes uint64 // each datagram once; bytes of payload
	Reordered      uint64 // of Packets, those that came after a later one
	Duplicates     uint64 // not in Packets; told apart within the last window sequence numbers
	Elapsed        time.Duration
}

const reportLen = 40

// Append appends r in wire form.
func (r Report) Append(b []byte) []byte {
	for _, v := range []uint64{r.Packets, r.Bytes, r.Reordered, r.Duplicates, uint64(r.Elapsed)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// ReadReport reads the wire form. It refuses values that no server can have counted.
func ReadReport(r io.Reader) (Report, error) {
	var b [reportLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Report{}, fmt.Errorf("read the server's report: %w", err)
	}
	field := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	report := Report{field(0), field(1), field(2), field(3), time.Duration(field(4))}
	if report.Elapsed < 0 || report.Reordered > report.Packets {
		return Report{}, fmt.Errorf("read the server's report: %+v has impossible counts", report)
	}
	return report, nil
}

// window is how far back duplicates are recognised, in sequence numbers.
const window = 4096

// tally counts the datagrams of one stream.
type tally struct {
	Report
	first, last time.Time
	seen        [window / 64]uint64 // a bit per sequence number up to highest, modulo window
	highest     uint64
}

// add counts a datagram of n bytes. Sequence numbers begin with 0.
func (t *tally) add(sequence uint64, n int, now time.Time) {
	switch {
	case t.first.IsZero():
		t.first, t.highest = now, sequence
	case sequence > t.highest:
		t.forget(sequence)
		t.highest = sequence
	case t.highest-sequence < window && t.seen[sequence%window/64]&(1<<(sequence%64)) != 0:
		t.Duplicates++
		return
	default:
		t.Reordered++
	}
	t.seen[sequence%window/64] |= 1 << (sequence % 64)
	t.Packets++
	t.Bytes += uint64(n)
	t.last = now
	t.Elapsed = now.Sub(t.first)
}

// forget clears the bits of the numbers after highest up to sequence, which still stand for numbers of the previous
// window.
func (t *tally) forget(sequence uint64) {
	if sequence-t.highest >= window {
		t.seen = [window / 64]uint64{}
		return
	}
	for s := t.highest + 1; s <= sequence; s++ {
		t.seen[s%window/64] &^= 1 << (s % 64)
	}
}
