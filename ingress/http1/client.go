// Package http1 is an HTTP/1.1 client. It sends a request exactly as it is given, returns the bytes of the response as
// they arrive, and keeps connections for later requests.
//
// It exists because net/http's Transport encodes the path in its own way, holds back a chunk of a response until it is
// whole, cannot tell whether a read would wait, and sends the body without being asked when the answer to "Expect:
// 100-continue" is late or missing.
//
// # One exchange
//
//	Do ── an idle connection, or a new one ── write the head ─┬─ send the body, in a goroutine of its own
//	                                                          └─ read interim responses and the head ── Body.Read ...
//
// The response may begin, and end, before the body is sent. A connection is kept when request and response have both
// ended as they should and nothing else has arrived; otherwise it is closed. While a connection is idle a goroutine
// reads from it, and so notices that the server closes it before the next request is sent.
//
// Dials are bounded, and belong to nobody: a new connection goes to the request whose turn it is, or is kept. Without
// that, clients whose requests are gone before they have a connection could have any number of dials under way.
//
// A request that was sent over an idle connection and got no byte of an answer is sent again, over a new connection, if
// that is harmless: it is a GET, HEAD, OPTIONS or TRACE without body (RFC 9110 section 9.2.2). Other requests are sent
// only over connections that were in use a moment ago: servers close idle connections after some seconds, and the
// request may cross that.
package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Options are what a Client needs. Dial is required.
type Options struct {
	// Dial connects to an address. It goes on when the request for which it was begun is gone, for DialTimeout at
	// most.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// DialTimeout is how long a Dial may take; 0 is no limit. A request waits for a connection for a moment longer.
	DialTimeout time.Duration
	// ResponseTimeout is the longest time from the end of a request to the head of its response, and for each write of
	// the body; 0 is no limit.
	ResponseTimeout time.Duration
	// IdleTimeout is how long an idle connection is kept; 0 is one minute.
	IdleTimeout time.Duration
	// MaxIdle and MaxIdlePerAddr are how many idle connections are kept; 0 is 1024 and 256. Further ones are closed.
	MaxIdle, MaxIdlePerAddr int
}

// Request is a request to a server. A Client does not write to it.
type Request struct {
	Method string
	// Target is the request target, which is sent as it is. Like Method, it must hold neither spaces nor control
	// characters.
	Target string
	// Host is the Host header; "" is an empty one.
	Host string
	// Header is sent without its Host, Content-Length, Transfer-Encoding and Trailer, which follow from the other
	// fields.
	Header http.Header
	// Body is sent piece by piece as it can be read; nil is none. The Client does not close it, and may read it until
	// Do's response has ended.
	Body io.Reader
	// Length is that of the Body in bytes; -1 is not known, and the Body is sent chunked.
	Length int64
	// Trailer is read for its keys when the request begins, and for its values when Body has ended. It needs a Length
	// of -1.
	Trailer http.Header
	// Interim is called with each interim response (1xx, but not 101), before Do returns. nil: they are ignored.
	Interim func(code int, h http.Header)
	// Owner is whom the request is charged to. Requests that wait for a connection get one by turns of their owners.
	Owner netip.Prefix
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

// SendError is an error from reading a Request's Body.
type SendError struct{ Err error }

func (e *SendError) Error() string { return "read the request's body: " + e.Err.Error() }
func (e *SendError) Unwrap() error { return e.Err }

// Client sends requests to servers, and keeps connections. Its methods may be called concurrently.
type Client struct {
	o Options

	ctx      context.Context // of dials; ends with Close
	cancel   context.CancelFunc
	dialling sync.WaitGroup

	mu      sync.Mutex         // guards below
	origins map[string]*origin // by address; those without content are left out
	kept    int                // idle connections
	dials   int                // under way
	closed  bool
}

// New makes a Client. The caller closes it to release its connections.
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
	c := &Client{o: o, origins: map[string]*origin{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Do sends r to the server at addr and returns the response. An error of Dial is returned as it is: nothing was sent
// then. The caller must close the response's Body. When the status is 101, the Body is the connection: an
// io.ReadWriteCloser with CloseWrite. When ctx ends, the connection is closed, whatever the state of the exchange.
func (c *Client) Do(ctx context.Context, addr string, r *Request) (*http.Response, error) {
	fresh := freshFor
	if r.Replayable() {
		fresh = c.o.IdleTimeout
	}
	cn, again := c.take(addr, fresh), false
	for {
		if cn == nil {
			var err error
			if cn, err = c.connect(ctx, addr, r.Owner, again); err != nil {
				return nil, err
			}
		}
		if err := ctx.Err(); err != nil { // nothing was sent, so the connection is as good as it was
			c.put(cn)
			return nil, err
		}
		reused := cn.used
		cn.used = true
		resp, err := cn.exchange(ctx, r)
		if err == nil || !reused || !errors.Is(err, ErrUnanswered) || !r.Replayable() || ctx.Err() != nil {
			return resp, err
		}
		cn, again = nil, true
	}
}

// Close closes the idle connections and ends dials. Exchanges under way go on, and their connections are closed at the
// end.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	var idle []*conn
	for _, s := range c.origins {
		idle = append(idle, s.idle...)
		s.idle = nil
		c.forget(s)
	}
	c.kept = 0
	c.mu.Unlock()
	c.cancel()
	for _, cn := range idle {
		cn.Conn.Close()
		<-cn.watched
	}
	c.dialling.Wait()
}
