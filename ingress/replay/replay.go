// Package replay reads a body for those who need more of a Reader than to be read: it can be begun again, as long as
// little of it was read, and closed while somebody waits for more of it.
//
// A Body is read by one Reader after another. What from gives is read in a goroutine that outlives a Reader which is
// closed, or replaced by another, while it waits; what comes then is kept for the next, however much it is. When there
// can be no next one, since Settle was called or too much was read, the last Reader reads by itself, and takes the
// Body's source with it when it is closed.
package replay

import (
	"errors"
	"io"
	"slices"
	"sync"
)

// pieceBytes is what is read at once as long as it is kept.
const pieceBytes = 4 << 10

// ErrGone: more of the body was read than is kept, or the Reader is not the one that reads it.
var ErrGone = errors.New("the body is read no longer, or kept no longer")

// Body is a body that can be read again. Make it with New.
type Body struct {
	from io.ReadCloser
	max  int

	mu      sync.Mutex // guards below, and every Reader
	changed sync.Cond  // on mu: there is more to read, or a Reader has ended
	reading bool       // from is being read
	kept    []byte     // behind its end from is read into
	last    bool       // there will be no further Reader
	ended   error      // of from
	newest  *Reader
}

// New gives a Body that keeps up to max bytes. It reads from by one Read at a time, and may close it meanwhile.
func New(from io.ReadCloser, max int) *Body {
	b := &Body{from: from, max: max}
	b.changed.L = &b.mu
	return b
}

// Reader reads a Body from its beginning.
type Reader struct {
	body   *Body
	at     int // of what is kept
	closed bool
}

var _ io.ReadCloser = (*Reader)(nil)

// Reader gives a new Reader in place of the one before, or ErrGone.
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

// Settle says that no further Reader will be asked for.
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

// Close makes Read return.
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

// Read waits for the body when all that is kept has been read. A Reader that was closed or replaced gets ErrGone.
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

// direct reads into p. mu is held, but while it waits.
func (b *Body) direct(p []byte) (int, error) {
	b.reading = true
	b.mu.Unlock()
	n, err := b.from.Read(p)
	b.mu.Lock()
	b.reading, b.ended = false, err
	b.changed.Broadcast()
	return n, err
}

// fill reads into p for the newest Reader.
func (b *Body) fill(p []byte) {
	n, err := b.from.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading, b.ended = false, err
	b.kept = append(b.kept, p[:n]...) // in place, unless what was kept has been let go meanwhile
	b.changed.Broadcast()
}

// forget lets go of what is kept, when that is too much or nobody will ask for it, and the newest Reader has read it.
// mu is held.
func (b *Body) forget() {
	if r := b.newest; r.at == len(b.kept) && (b.last || len(b.kept) > b.max) {
		b.kept, r.at, b.last = nil, 0, true
	}
}
