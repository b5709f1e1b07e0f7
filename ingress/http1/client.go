// Package http1 asks HTTP/1.1 servers. It sends a request exactly as it is told, byte by byte, hands the response on
// as it comes in, and keeps connections for later requests.
//
// It exists because net/http's Transport writes its own encoding of the path, holds a chunk of a response back until
// it is whole, cannot say whether a read would wait, and sends the body unasked when an answer to "Expect:
// 100-continue" takes its time or is none.
//
// # One exchange
//
//	Do ── an idle connection, or a new one ── write the head ─┬─ send the body, in a goroutine of its own
//	                                                          └─ read interim responses and the head ── Body.Read ...
//
// The response may begin, and end, before the body is sent. A connection is kept when both have ended in an orderly
// way and nothing else has arrived; else it is closed. While it is idle a goroutine reads from it, so that a server's
// closing is noticed before the next request and not by it.
//
// A request that was sent over an idle connection and got no byte of an answer is sent again, over a new one, if that
// is harmless: it is a GET, HEAD, OPTIONS or TRACE without body (RFC 9110 section 9.2.2). Others go only over
// connections that were in use a moment ago: servers close idle ones after seconds, and their closing may cross the
// request.
package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Options are what a Client needs. Dial is required.
type Options struct {
	// Dial connects to an address.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// ResponseTimeout is the longest time from the end of a request to the head of its response; 0 is without end.
	ResponseTimeout time.Duration
	// IdleTimeout closes an idle connection; 0 is one minute.
	IdleTimeout time.Duration
	// MaxIdle and MaxIdlePerAddr bound the idle connections; 0 is 1024 and 256. Beyond them connections are closed.
	MaxIdle, MaxIdlePerAddr int
}

// Request is what a server is asked. It is not written to.
type Request struct {
	Method string
	// Target is the request target as it is sent. Like Method, it must hold neither spaces nor control characters.
	Target string
	// Host is the Host header; "" is an empty one.
	Host string
	// Header is sent without Host, Content-Length, Transfer-Encoding and Trailer, which follow from the other fields.
	Header http.Header
	// Body is sent as it can be read; nil is none. It is not closed, and may be read until Do's response has ended.
	Body io.Reader
	// Length of the Body in bytes; -1 is not known, and sends it chunked.
	Length int64
	// Trailer is read for its keys when the request begins, and for its values when Body has ended. It needs a Length
	// of -1.
	Trailer http.Header
	// Interim is called with each response of the 1xx kind but 101, before Do returns. Nil ignores them.
	Interim func(code int, h http.Header)
}

// hasBody reports whether anything follows the head.
func (r *Request) hasBody() bool { return r.Body != nil && r.Length != 0 }

// Replayable reports whether the request may be sent twice: it is harmless and has no body.
func (r *Request) Replayable() bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return !r.hasBody()
	}
	return false
}

// SendError is an error of reading a Request's Body.
type SendError struct{ Err error }

func (e *SendError) Error() string { return "read the request's body: " + e.Err.Error() }
func (e *SendError) Unwrap() error { return e.Err }

// Client asks servers. Its methods may be called concurrently.
type Client struct {
	o Options

	mu     sync.Mutex // guards below
	idle   map[string][]*conn
	kept   int // connections in idle
	closed bool
}

// New makes a Client. Close it to release everything.
func New(o Options) *Client {
	if o.IdleTimeout == 0 {
		o.IdleTimeout = time.Minute
	}
	if o.MaxIdle == 0 {
		o.MaxIdle = 1024
	}
	if o.MaxIdlePerAddr == 0 {
		o.MaxIdlePerAddr = 256
	}
	return &Client{o: o, idle: map[string][]*conn{}}
}

// Do asks the server at addr. An error of Dial is returned as it is: nothing was sent then. The response's Body must be
// closed; when its status is 101, the Body is the connection: an io.ReadWriteCloser with CloseWrite. When ctx ends, the
// connection is closed, whatever state the exchange is in.
func (c *Client) Do(ctx context.Context, addr string, r *Request) (*http.Response, error) {
	fresh := freshFor
	if r.Replayable() {
		fresh = c.o.IdleTimeout
	}
	cn := c.take(addr, fresh)
	for {
		reused := cn != nil
		if !reused {
			raw, err := c.o.Dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			cn = &conn{Conn: raw, client: c, addr: addr}
		}
		resp, err := cn.exchange(ctx, r)
		if err == nil || !reused || !errors.Is(err, ErrUnanswered) || !r.Replayable() || ctx.Err() != nil {
			return resp, err
		}
		cn = nil
	}
}

// Close closes the idle connections, and lets no more become idle. Exchanges under way go on.
func (c *Client) Close() {
	c.mu.Lock()
	idle := c.idle
	c.idle, c.kept, c.closed = nil, 0, true
	c.mu.Unlock()
	for _, list := range idle {
		for _, cn := range list {
			cn.Conn.Close()
			<-cn.watched
		}
	}
}
