package http1

import (
	"bufio"
	"errors"
	"io"
	"net/http/httputil"
	"strings"
	"testing"
	"testing/iotest"
)

// pieces is a reader that returns its pieces one by one, then io.EOF. It counts the reads after the last piece.
type pieces struct {
	left  []string
	waits int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		p.waits++
		return 0, io.EOF
	}
	n := copy(b, p.left[0])
	if p.left[0] = p.left[0][n:]; p.left[0] == "" {
		p.left = p.left[1:]
	}
	return n, nil
}

func newChunked(r io.Reader) *chunked {
	in := bufio.NewReader(r)
	return &chunked{in: in, trailer: func() error {
		for {
			line, err := in.ReadString('\n')
			if err != nil || line == "\r\n" {
				return err
			}
		}
	}}
}

// Read returns the bytes that have come without waiting for more, wherever the body is cut.
func TestChunkedWaitsForNothing(t *testing.T) {
	const whole = "3\r\nabc\r\n2;ext=\"x\"\r\nde\r\nA\r\nfghijklmno\r\n0\r\nX: 1\r\n\r\n"
	for cut := range len(whole) {
		src := &pieces{left: []string{whole[:cut]}}
		c := newChunked(src)
		buf := make([]byte, 100)
		got := ""
		_, _ = c.in.Peek(1)
		for c.ready() {
			n, err := c.Read(buf)
			got += string(buf[:n])
			if err != nil {
				t.Fatalf("cut at %d: %q is there and Read says %v", cut, whole[:cut], err)
			}
		}
		if src.waits > 0 && cut > 0 {
			t.Errorf("cut at %d: something was waited for", cut)
		}
		// The slow twin takes the letters of the body that stand before the cut.
		want := ""
		for _, data := range []string{"abc", "de", "fghijklmno"} {
			at := strings.Index(whole, data)
			want += data[:max(0, min(len(data), cut-at))]
		}
		if got != want {
			t.Errorf("cut at %d: got %q of %q, want %q", cut, got, whole[:cut], want)
		}
	}
	c := newChunked(strings.NewReader(whole))
	_, _ = c.in.Peek(1)
	for {
		if !c.ready() {
			t.Fatal("all is there, and Read would wait")
		}
		if _, err := c.Read(make([]byte, 100)); err == io.EOF {
			break
		}
	}
}

func TestChunkedRefuses(t *testing.T) {
	for _, s := range []string{"", "3", "3\r\nab", "3\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "x\r\n", "-1\r\n", "+1\r\na\r\n", " 1\r\na\r\n", "0x1\r\na\r\n", "\r\n",
		"3\r\nabc\r\n", "3\r\nabc\r\n0\r\n", "3\r\nabc\n0\r\n\r\n", "ffffffffffffffff\r\n", "1" + strings.Repeat(" ", maxSizeLine) + "\r\na\r\n"} {
		if got, err := io.ReadAll(newChunked(strings.NewReader(s))); err == nil {
			t.Errorf("%.40q: got %q, want an error", s, got)
		} else if !errors.Is(err, errChunk) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, bufio.ErrBufferFull) {
			t.Errorf("%.40q: got %v", s, err)
		}
	}
}

// chunked is held against the reader of net/http, which accepts a little more.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{"3\r\nabc\r\n0\r\n\r\n", "1;x\r\na\r\n0\r\n\r\n", "00a\r\n0123456789\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := string(b)
		got, err := io.ReadAll(newChunked(iotest.OneByteReader(strings.NewReader(s))))
		again, err2 := io.ReadAll(newChunked(strings.NewReader(s)))
		if string(again) != string(got) || (err == nil) != (err2 == nil) {
			t.Fatalf("%q: %q, %v in one piece, %q, %v byte by byte", s, again, err2, got, err)
		}
		if err != nil {
			return
		}
		if want, err := io.ReadAll(httputil.NewChunkedReader(strings.NewReader(s))); err != nil || string(want) != string(got) {
			t.Errorf("%q: got %q, net/http reads %q, %v", s, got, want, err)
		}
	})
}
