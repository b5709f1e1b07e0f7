package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"

	"tapestry.dev/tapestry/underway"
)

// upgrade passes on a response with status 101, and then joins client and backend until both directions have ended.
func (rq *request) upgrade(resp *http.Response) {
	got := protocols(resp.Header["Upgrade"])
	backend, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !agreed(rq.asked, got) {
		rq.fail(fmt.Errorf("the backend changes to protocol %q, and %q was asked for", got, rq.asked))
		return
	}
	raw, buffered, err := rq.control.Hijack()
	if err != nil {
		rq.fail(err)
		return
	}
	defer raw.Close()
	early, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	removeHopByHop(resp.Header)
	resp.Header["Connection"], resp.Header["Upgrade"] = []string{"Upgrade"}, []string{strings.Join(got, ", ")}
	_ = resp.Header.Write(&head)
	head.WriteString("\r\n")
	rq.answers()
	if _, err = raw.Write(head.Bytes()); err == nil && len(early) > 0 {
		_, err = backend.Write(early)
	}
	if err == nil {
		err = join(raw, backend)
	}
	if err != nil {
		rq.s.log.LogAttrs(context.Background(), slog.LevelDebug, "an upgraded connection broke off",
			slog.String("service", rq.u.port.String()), slog.String("err", err.Error()))
	}
}

// join copies in both directions until both have ended or one has failed. Then it closes a and b.
func join(a net.Conn, b io.ReadWriteCloser) error {
	ended := make(chan error, 2)
	go func() { ended <- pour(a, b) }()
	go func() { ended <- pour(b, a) }()
	err := <-ended
	if err == nil {
		err = <-ended
		a.Close()
		b.Close()
		return err
	}
	a.Close()
	b.Close()
	<-ended
	return err
}

// pour copies src to dst and passes its end on. It uses a small buffer until src sends much, since thousands of
// upgraded connections are idle most of the time.
func pour(dst io.WriteCloser, src io.Reader) error {
	small := make([]byte, 2<<10)
	var large *[bufferBytes]byte
	defer func() {
		if large != nil {
			pool.Put(large)
		}
	}()
	for buf := small; ; {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			if w, ok := dst.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
				return nil
			}
			return dst.Close()
		}
		if err != nil {
			return err
		}
		switch {
		case large == nil && n == len(small):
			large = pool.Get().(*[bufferBytes]byte)
			buf = large[:]
		case large != nil && n < len(small):
			pool.Put(large)
			large, buf = nil, small
		}
	}
}

// upgrades are the requests that ask for an upgrade. http.Server neither counts nor closes upgraded connections.
type upgrades struct {
	underway.Count
	mu    sync.Mutex
	conns map[*client]int // requests per connection
}

func (u *upgrades) begin(c *client) {
	u.Begin()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conns == nil {
		u.conns = map[*client]int{}
	}
	u.conns[c]++
}

func (u *upgrades) end(c *client) {
	defer u.End()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conns[c]--; u.conns[c] == 0 {
		delete(u.conns, c)
	}
}

// close closes the client's side of every upgraded connection. The backend's side ends with its request's context.
func (u *upgrades) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		c.conn.Close()
	}
}
