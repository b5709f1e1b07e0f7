package replay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

func mustReader(t *testing.T, b *Body) *Reader {
	t.Helper()
	r, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReaders(t *testing.T) {
	b := New(io.NopCloser(strings.NewReader("hello")), 5)
	got := make([]byte, 3)
	first := mustReader(t, b)
	io.ReadFull(first, got)
	second := mustReader(t, b)
	if n, err := first.Read(got); n != 0 || !errors.Is(err, ErrGone) {
		t.Errorf("the first goes on: %d, %v", n, err)
	}
	if all, err := io.ReadAll(second); string(all) != "hello" || err != nil {
		t.Errorf("the second got %q, %v", all, err)
	}
	if all, err := io.ReadAll(mustReader(t, b)); string(all) != "hello" || err != nil {
		t.Errorf("the third got %q, %v", all, err)
	}
}

func TestTooMuch(t *testing.T) {
	b := New(io.NopCloser(iotest.OneByteReader(strings.NewReader("hello"))), 4)
	r := mustReader(t, b)
	if all, err := io.ReadAll(r); string(all) != "hello" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	if _, err := b.Reader(); !errors.Is(err, ErrGone) {
		t.Errorf("another Reader after more than is kept: %v", err)
	}
	if b.kept != nil {
		t.Errorf("%d bytes are kept", len(b.kept))
	}
}

func TestErrorsStay(t *testing.T) {
	broken := errors.New("broken")
	b := New(io.NopCloser(io.MultiReader(strings.NewReader("he"), iotest.ErrReader(broken))), 10)
	for range 2 {
		if all, err := io.ReadAll(mustReader(t, b)); string(all) != "he" || !errors.Is(err, broken) {
			t.Errorf("got %q, %v", all, err)
		}
	}
}

// The bytes that a replaced Reader waited for go to the new Reader, also when they are more than is kept.
func TestReplacedWhileItWaits(t *testing.T) {
	for _, settled := range []bool{false, true} {
		from, to := io.Pipe()
		b := New(from, 5)
		old := mustReader(t, b)
		gone := make(chan error, 1)
		begun := make(chan struct{})
		go func() {
			io.ReadFull(old, make([]byte, 2))
			close(begun)
			_, err := old.Read(make([]byte, 10))
			for err == nil {
				_, err = old.Read(make([]byte, 10))
			}
			gone <- err
		}()
		to.Write([]byte("he"))
		<-begun
		newer := mustReader(t, b)
		if settled {
			b.Settle()
		}
		go func() { to.Write([]byte("llo and more")); to.Close() }()
		if all, err := io.ReadAll(newer); string(all) != "hello and more" || err != nil {
			t.Errorf("settled %v: got %q, %v", settled, all, err)
		}
		if err := <-gone; !errors.Is(err, ErrGone) && err != io.EOF {
			t.Errorf("the old one got %v", err)
		}
	}
}

func TestSettle(t *testing.T) {
	b := New(io.NopCloser(strings.NewReader("hello")), 10)
	io.ReadFull(mustReader(t, b), make([]byte, 4))
	r := mustReader(t, b)
	io.ReadFull(r, make([]byte, 1))
	b.Settle()
	if all, err := io.ReadAll(r); string(all) != "ello" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	if b.kept != nil {
		t.Errorf("%d bytes are kept", len(b.kept))
	}
	if _, err := b.Reader(); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
}

// Close ends the wait of a Reader. Only closing the last Reader closes the source.
func TestClose(t *testing.T) {
	for _, settled := range []bool{false, true} {
		from, to := io.Pipe()
		b := New(from, 10)
		r := mustReader(t, b)
		got := make(chan error, 1)
		if settled {
			b.Settle()
		}
		go func() { _, err := r.Read(make([]byte, 10)); got <- err }()
		r.Close()
		if err := <-got; !errors.Is(err, ErrGone) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("settled %v: got %v", settled, err)
		}
		if !settled {
			next := mustReader(t, b)
			go func() { to.Write([]byte("hello")); to.Close() }()
			if all, err := io.ReadAll(next); string(all) != "hello" || err != nil {
				t.Errorf("got %q, %v", all, err)
			}
			next.Close()
			b.Settle()
		}
		if _, err := to.Write([]byte("x")); err == nil {
			t.Errorf("settled %v: the source is open", settled)
		}
	}
}

// Each Reader gets the body from its beginning, whatever the pieces and wherever Readers are replaced.
func TestRandomReaders(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		body := make([]byte, r.IntN(200))
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		limit, read, settled := r.IntN(250), 0, false
		b := New(io.NopCloser(pieces{bytes.NewReader(body), r}), limit)
		var got []byte
		reader := mustReader(t, b)
		for {
			p := make([]byte, 1+r.IntN(40))
			n, err := reader.Read(p)
			got = append(got, p[:n]...)
			if read = max(read, len(got)); !bytes.HasPrefix(body, got) {
				t.Fatalf("seed %d: %d bytes, which are not the body's", seed, len(got))
			}
			if err == io.EOF && len(got) == len(body) {
				break
			} else if err != nil {
				t.Fatalf("seed %d: %v after %d of %d bytes", seed, err, len(got), len(body))
			}
			if r.IntN(4) == 0 {
				next, err := b.Reader()
				if (err == nil) != (read <= limit && !settled) {
					t.Fatalf("seed %d: %d bytes were read, %d may be kept, settled %v: %v", seed, read, limit, settled, err)
				}
				if err == nil {
					reader, got = next, nil
				}
			}
			if r.IntN(60) == 0 {
				b.Settle()
				settled = true
			}
		}
	}
}

// pieces is a reader that returns a few bytes at a time.
type pieces struct {
	from io.Reader
	rand *rand.Rand
}

func (s pieces) Read(p []byte) (int, error) {
	return s.from.Read(p[:1+s.rand.IntN(len(p))])
}
