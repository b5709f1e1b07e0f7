// Package replay reads a body that can be read again from its beginning as long as little of it was read. A Reader of
// the body can be closed while it waits for more.
//
// A Body is read by one Reader after another. A goroutine reads the source, and goes on when the Reader that waits for
// it is closed or replaced. The bytes that arrive then are kept for the next Reader, however many they are. There is no
// next Reader once Settle was called or too much was read: then the last Reader reads the source directly, and closing
// the Reader closes the source.
package replay

import (
	"errors"
	"io"
	"slices"
	"sync"
)

// pieceBytes is how many bytes are read from the source at once while they are kept.
const pieceBytes = 4 << 10

// ErrGone says that the beginning of the body is no longer kept, or that a Reader was closed or replaced.
var ErrGone = errors.New("the body is read no longer, or kept no longer")

// Body is a body that can be read again. Make it with New.
type Body struct {
	from io.ReadCloser
	max  int

	mu      sync.Mutex // guards below, and every Reader
	changed sync.Cond  // on mu: there is more to read, or a Reader has ended
	reading bool       // from is being read
	kept    []byte     // from is read into the room behind its end
	last    bool       // there will be no further Reader
	ended   error      // the error that reading from ended with
	newest  *Reader
}

// New returns a Body that keeps up to max bytes of from. It calls from.Read from one goroutine at a time, and may call
// from.Close during a Read.
func New(from io.ReadCloser, max int) *Body {
	b := &Body{from: from, max: max}
	b.changed.L = &b.mu
	return b
}

// Reader reads a Body from its beginning.
type Reader struct {
	body   *Body
	at     int // the position in kept
	closed bool
}

var _ io.ReadCloser = (*Reader)(nil)

// Reader returns a new Reader, which replaces the one before. It returns ErrGone when the beginning is no longer kept.
func (b *Body) Reader() (*Reader, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last {
		return nil, ErrGone
	}
	b.newest = &Reader{body: b}
	b.changed.Broadcast()
	return b.newest, nil
}

// Settle tells the Body that no further Reader will be asked for, so that it need not keep what was read.
func (b *Body) Settle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = true
	if b.newest == nil {
		return
	}
	b.forget()
	if b.newest.closed {
		b.from.Close()
	}
}

// Close makes a Read that waits return.
func (r *Reader) Close() error {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	r.closed = true
	b.changed.Broadcast()
	if b.last && r == b.newest {
		return b.from.Close()
	}
	return nil
}

// Read returns what is kept, and then waits for more of the body. A Reader that was closed or replaced gets ErrGone.
func (r *Reader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case r.closed || r != b.newest:
			return 0, ErrGone
		case r.at < len(b.kept):
			n := copy(p, b.kept[r.at:])
			r.at += n
			b.forget()
			return n, nil
		case b.ended != nil:
			return 0, b.ended
		case b.reading:
			b.changed.Wait()
		case b.last:
			return b.direct(p)
		default:
			n := min(len(p), pieceBytes)
			b.reading, b.kept = true, slices.Grow(b.kept, n)
			go b.fill(b.kept[len(b.kept) : len(b.kept)+n])
		}
	}
}

// direct reads from the source into p. mu is held, and released during the read.
func (b *Body) direct(p []byte) (int, error) {
	b.reading = true
	b.mu.Unlock()
	n, err := b.from.Read(p)
	b.mu.Lock()
	b.reading, b.ended = false, err
	b.changed.Broadcast()
	return n, err
}

// fill reads from the source into p, which lies behind the end of kept.
func (b *Body) fill(p []byte) {
	n, err := b.from.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading, b.ended = false, err
	b.kept = append(b.kept, p[:n]...) // copies nothing, unless kept was dropped meanwhile
	b.changed.Broadcast()
}

// forget drops what is kept when the newest Reader has read it, and it is too much or no further Reader can ask for it.
// mu is held.
func (b *Body) forget() {
	if r := b.newest; r.at == len(b.kept) && (b.last || len(b.kept) > b.max) {
		b.kept, r.at, b.last = nil, 0, true
	}
}
