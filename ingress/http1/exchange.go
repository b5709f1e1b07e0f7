package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxHead is the largest head of one response in bytes, as much as clients may send. Each interim response and the
	// trailer may have as much. A head of many short fields takes forty times its length in memory.
	maxHead = 128 << 10
	// bufferBytes is how many bytes an exchange reads and sends at once.
	bufferBytes = 32 << 10
	// sendGrace is how long the rest of a request may still be sent after its response has ended. The response may
	// arrive a moment before the last write of the request returns.
	sendGrace = 50 * time.Millisecond
)

var (
	// ErrUnanswered says that the connection ended before the first byte of a response. The server may have carried out
	// the request.
	ErrUnanswered = errors.New("the server closed the connection without an answer")
	errHead       = fmt.Errorf("the head of the response is larger than %d bytes", maxHead)
)

// conn is a connection, used for one exchange at a time.
type conn struct {
	net.Conn
	client    *Client
	addr      string
	used      bool // it had an exchange
	idleSince time.Time
	watched   chan bool // while idle: watch sends whether the connection can be used
}

// exchange is one request and its response. It is the response's Body.
type exchange struct {
	conn    *conn
	request *Request
	stop    func() bool // stop closing the connection when the context ends
	in      *bufio.Reader
	left    int64         // bytes that in may still read from the connection
	failed  error         // the error of the last read from the connection
	body    io.Reader     // of the response
	keep    bool          // the server keeps the connection
	chunked *chunked      // the body, when it comes in chunks
	sending chan struct{} // closed when no more of the request will be sent; nil when it has no body
	ended   bool

	mu       sync.Mutex // guards below
	answered bool       // the head of the response has come
	sendErr  error      // why the request's body was not sent to its end
}

var (
	_ io.ReadCloser = (*exchange)(nil)

	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferBytes) }}
)

// exchange sends r and reads the head of its response. On error the connection is closed.
func (cn *conn) exchange(ctx context.Context, r *Request) (*http.Response, error) {
	x := &exchange{conn: cn, request: r}
	x.stop = context.AfterFunc(ctx, func() { cn.Conn.Close() })
	x.in = readers.Get().(*bufio.Reader)
	x.in.Reset(source{x})
	resp, err := x.run()
	if err == nil {
		return resp, nil
	}
	x.end(false)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, err
}

func (x *exchange) run() (*http.Response, error) {
	if err := x.writeHead(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	if x.request.hasBody() {
		x.sending = make(chan struct{})
		go x.send()
	} else {
		x.awaitResponse()
	}
	h, err := x.readHead()
	x.mu.Lock()
	x.answered = err == nil
	sendErr := x.sendErr
	_ = x.conn.SetReadDeadline(time.Time{})
	x.mu.Unlock()
	if err != nil {
		if sendErr != nil && !errors.Is(sendErr, ErrEnough) {
			return nil, sendErr
		}
		return nil, err
	}
	x.left = 1<<63 - 1
	x.keep = h.keep
	resp := h.Response
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		// The deadline for sending the request must not hold for the new protocol.
		_ = x.conn.SetDeadline(time.Time{})
		resp.Body = upgraded{x}
		return resp, nil
	case h.chunked:
		x.chunked = &chunked{in: x.in, trailer: func() error { return x.readTrailer(resp) }}
		x.body = x.chunked
	case h.length == untilClose:
		x.body = x.in
	case h.length == 0:
		resp.Body = http.NoBody
		x.end(true)
		return resp, nil
	default:
		x.body = &sized{x.in, h.length}
	}
	resp.Body = x
	return resp, nil
}

// awaitResponse sets the deadline for the head of the response, unless it has come.
func (x *exchange) awaitResponse() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if limit := x.conn.client.o.ResponseTimeout; limit > 0 && !x.answered {
		_ = x.conn.SetReadDeadline(time.Now().Add(limit))
	}
}

// source reads from the connection, and fails when a head is larger than maxHead.
type source struct{ x *exchange }

func (s source) Read(p []byte) (int, error) {
	if s.x.left <= 0 {
		s.x.failed = errHead
		return 0, errHead
	}
	n, err := s.x.conn.Conn.Read(p)
	s.x.left -= int64(n)
	s.x.failed = err
	return n, err
}

// readHead reads interim responses, and returns the head of the first response that is not interim.
func (x *exchange) readHead() (*head, error) {
	x.left = maxHead
	if _, err := x.in.Peek(1); err != nil {
		if timedOut(err) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	for {
		h, err := parseHead(x.in, x.request.Method)
		if err != nil {
			if x.failed != nil { // the cause of the parse error
				err = x.failed
			}
			return nil, fmt.Errorf("read the head of the response: %w", err)
		}
		if h.StatusCode >= 200 || h.StatusCode == http.StatusSwitchingProtocols {
			return h, nil
		}
		if x.request.Interim != nil {
			x.request.Interim(h.StatusCode, h.Header)
		}
		x.left = maxHead
	}
}

// Read reads the response's body. The exchange ends with the body.
func (x *exchange) Read(p []byte) (int, error) {
	if x.ended {
		return 0, io.EOF
	}
	n, err := x.body.Read(p)
	if err != nil {
		x.end(err == io.EOF)
	}
	return n, err
}

// Close ends the exchange. When the response has not been read to its end, the connection is closed.
func (x *exchange) Close() error {
	x.end(false)
	return nil
}

// Buffered reports whether Read is sure to return without waiting for the server.
func (x *exchange) Buffered() bool {
	switch {
	case x.ended:
		return true
	case x.chunked != nil:
		return x.chunked.ready()
	}
	return x.in.Buffered() > 0
}

// end ends the exchange. It keeps the connection for later requests when all went well, and closes it otherwise.
func (x *exchange) end(well bool) {
	if x.ended {
		return
	}
	x.ended = true
	well = x.stop() && well && x.keep && x.in.Buffered() == 0
	x.in.Reset(nil)
	readers.Put(x.in)
	switch {
	case !well:
		x.conn.Conn.Close()
	case x.sending == nil:
		x.conn.client.put(x.conn)
	default:
		select {
		case <-x.sending:
			x.settle()
		default:
			go x.settle()
		}
	}
}

// settle waits for sendGrace at most until the request is sent, and then keeps the connection or closes it.
func (x *exchange) settle() {
	grace := time.NewTimer(sendGrace)
	defer grace.Stop()
	select {
	case <-x.sending:
		x.mu.Lock()
		err := x.sendErr
		x.mu.Unlock()
		if err == nil {
			x.conn.client.put(x.conn)
			return
		}
	case <-grace.C:
	}
	x.conn.Conn.Close()
}

// upgraded is the Body of a response with status 101: the connection, which the caller now owns.
type upgraded struct{ x *exchange }

var _ io.ReadWriteCloser = upgraded{}

// Read first returns the bytes that came with the head.
func (u upgraded) Read(p []byte) (int, error) {
	x := u.x
	if x.in != nil {
		if x.in.Buffered() > 0 {
			return x.in.Read(p)
		}
		x.in.Reset(nil)
		readers.Put(x.in)
		x.in = nil
	}
	return x.conn.Conn.Read(p)
}

func (u upgraded) Write(p []byte) (int, error) { return u.x.conn.Conn.Write(p) }

// CloseWrite ends the direction to the server.
func (u upgraded) CloseWrite() error {
	if c, ok := u.x.conn.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fmt.Errorf("close one direction of a %T: %w", u.x.conn.Conn, errors.ErrUnsupported)
}

// Close may be called while Read waits.
func (u upgraded) Close() error {
	u.x.stop()
	return u.x.conn.Conn.Close()
}
