package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/ingress/http1"
	"tapestry.dev/tapestry/ingress/replay"
)

// Limits of the backend side.
const (
	dialTimeout = 3 * time.Second // three SYNs, after which a pod of this cluster is gone
	// downFor is how long an endpoint is left out after a failed dial. Within about that time Options.Endpoints no
	// longer returns an endpoint that is really gone.
	downFor = time.Second
	// idleConns is how many idle connections are kept per endpoint, so that bursts of as many requests find open
	// connections. allIdleConns is how many are kept for all endpoints, unless Options says otherwise.
	idleConns       = 256
	allIdleConns    = 4096
	idleConnTimeout = time.Minute
	pingTimeout     = 15 * time.Second // of silence in HTTP/2 before a PING is sent, and then for its answer
	bufferBytes     = 32 << 10
	// grpcConns is how many connections with gRPC an endpoint has at most, those that are being dialled included. Each
	// carries as many streams as the endpoint allows, usually 100 and more. net/http goes on dialling for requests that
	// are gone.
	grpcConns = 64
	// replayBytes is how many bytes of a gRPC stream are kept until its backend begins to answer. Most messages are
	// shorter.
	replayBytes = 16 << 10
)

// backends are the pools of connections to backends, shared by all upstreams and states.
type backends struct {
	http1 *http1.Client
	h2c   *http.Transport
}

func newBackends(o Options) backends {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		c, err := o.Dial(ctx, network, addr)
		if err != nil {
			return nil, &dialError{err}
		}
		return c, nil
	}
	b := backends{
		http1: http1.New(http1.Options{
			Dial:            func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) },
			DialTimeout:     dialTimeout,
			ResponseTimeout: o.ResponseTimeout,
			IdleTimeout:     idleConnTimeout,
			MaxIdle:         o.MaxIdle, MaxIdlePerAddr: idleConns,
		}),
		h2c: &http.Transport{
			DialContext:        dial,
			MaxConnsPerHost:    grpcConns,
			DisableCompression: true, // bodies are passed on as they are
			IdleConnTimeout:    idleConnTimeout,
			Protocols:          new(http.Protocols),
			HTTP2:              &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout},
		},
	}
	b.h2c.Protocols.SetUnencryptedHTTP2(true)
	return b
}

func (b *backends) close() {
	b.http1.Close()
	b.h2c.CloseIdleConnections()
}

var (
	errNoEndpoint = errors.New("no endpoint is ready")
	errForbidden  = errors.New("a network policy does not let you reach the server")
)

// dialError is an error of Options.Dial: nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "dial: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// upstream holds the endpoints of one Service port.
type upstream struct {
	port      ServicePort
	server    *Server
	next      atomic.Uint32
	resolved  atomic.Pointer[resolved]
	resolving sync.Mutex // held while resolved is made
}

func (s *Server) newUpstream(port ServicePort) *upstream { return &upstream{port: port, server: s} }

// ask sends the request to an endpoint that the client may reach, and returns the response. After a failed dial, which
// has sent nothing, it asks the next endpoint. It also asks the next endpoint, once, when one did not begin to answer a
// harmless request: a pod that ends may still accept connections.
func (rq *request) ask() (*http.Response, error) {
	resolved := rq.u.endpoints()
	if len(resolved.endpoints) == 0 {
		return nil, errNoEndpoint
	}
	q := inquiry{rq: rq, resolved: resolved, verdict: rq.verdict(resolved), start: resolved.start(rq.client.owner.Addr()), now: time.Now().UnixNano()}
	q.send, q.harmless = rq.sender()
	resp, err := q.round(false)
	if resp == nil && err == nil && q.down { // all that the client may reach failed lately
		resp, err = q.round(true)
	}
	switch {
	case resp != nil || err != nil:
		return resp, err
	case q.undecided:
		return nil, errNoEndpoint
	}
	q.verdict.deny(rq.client.from(), &rq.s.denials)
	return nil, errForbidden
}

// inquiry is a request that looks for an endpoint that answers it.
type inquiry struct {
	rq        *request
	resolved  *resolved
	verdict   verdict
	start     int   // the index of the endpoint that is asked first
	now       int64 // Unix nanoseconds
	send      func(addr string) (*http.Response, error)
	harmless  bool // it may be sent to another endpoint after one closed without an answer
	undecided bool // of an endpoint it is not known yet whether the client may reach it
	down      bool // an endpoint that the client may reach failed lately
}

// round asks one endpoint after the other, those that failed lately only if all is set. It returns the answer, or the
// last error; neither where no endpoint was asked.
func (q *inquiry) round(all bool) (resp *http.Response, err error) {
	rq, s := q.rq, q.rq.s
	for i := range q.resolved.endpoints {
		n := (q.start + i) % len(q.resolved.endpoints)
		e := q.resolved.endpoints[n]
		switch q.verdict.permits(q.resolved.addrs[n], &s.denials) {
		case Forbidden:
			if q.verdict.none {
				return nil, nil
			}
			continue
		case Undecided:
			q.undecided = true
			continue
		}
		if !all && e.downUntil.Load() > q.now {
			q.down = true
			continue
		}
		if err != nil {
			s.stats.retries.Add(1)
		}
		rq.visit = e.begin(&s.source)
		if resp, err = q.send(e.addr); err == nil {
			rq.visit.answer(resp.StatusCode)
			return resp, nil
		}
		rq.visit.end()
		switch {
		case rq.in.Context().Err() != nil:
			return nil, err
		case errors.Is(err, http1.ErrNoConnection): // the endpoint may only be busy: it stays in use
		case errors.As(err, new(*dialError)):
			e.downUntil.Store(time.Now().Add(downFor).UnixNano())
			e.load.Refused(s.source.Now())
		case q.harmless && errors.Is(err, http1.ErrUnanswered):
			q.harmless = false // a request that makes its server crash must not reach more than two
		default:
			return nil, err
		}
	}
	return nil, err
}

// sender returns a func that sends the request to an address, and reports whether the request may be sent to a second
// endpoint after a first one closed without an answer.
func (rq *request) sender() (send func(addr string) (*http.Response, error), harmless bool) {
	ctx, header := rq.in.Context(), forBackend(rq.in, rq.client, rq.asked)
	var body io.Reader
	if rq.body != nil {
		body = rq.body
	}
	if isGRPC(rq.in) {
		var again *replay.Body
		if body != nil {
			again = replay.New(rq.body, replayBytes)
		}
		return func(addr string) (*http.Response, error) { return rq.sendH2C(addr, header, again) }, false
	}
	if rq.body != nil && rq.body.expects {
		header["Expect"] = []string{"100-continue"}
	}
	r := &http1.Request{
		Method: rq.in.Method, Target: rq.target.Raw, Host: rq.in.Host, Header: header,
		Body: body, Length: rq.in.ContentLength, Trailer: rq.in.Trailer, Interim: rq.interim, Owner: rq.client.owner,
	}
	return func(addr string) (*http.Response, error) { return rq.s.backends.http1.Do(ctx, addr, r) }, r.Replayable()
}

// sendH2C sends the request over h2c. When the backend says that it did not begin the request (RFC 9113 sections 6.8
// and 8.7), as it does when it shuts down, net/http sends the request again over another connection, and for that reads
// the body from its beginning.
func (rq *request) sendH2C(addr string, header http.Header, body *replay.Body) (*http.Response, error) {
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // otherwise net/http sends its own
	}
	r := &http.Request{
		Method: rq.in.Method, Host: rq.in.Host, Header: header, ContentLength: rq.in.ContentLength, Trailer: rq.in.Trailer,
		URL: &url.URL{Scheme: "http", Host: addr, Opaque: rq.target.Raw},
	}
	if strings.HasPrefix(rq.target.Raw, "//") { // net/http would take this Opaque for a host and a path
		host := rq.in.Host
		if host == "" {
			host = addr
		}
		r.URL.Opaque = "//" + host + rq.target.Raw
	}
	if body != nil {
		r.GetBody = func() (io.ReadCloser, error) {
			b, err := body.Reader()
			return b, err
		}
		var err error
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	resp, err := rq.s.backends.h2c.RoundTrip(r.WithContext(rq.in.Context()))
	if err == nil && body != nil {
		body.Settle()
	}
	return resp, err
}

// isGRPC reports whether r is gRPC, which needs HTTP/2 from end to end (gRPC over HTTP2, "Requests": content type
// application/grpc[+proto, ...]).
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") &&
		!strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web")
}

// pool holds the buffers that bodies are copied through.
var pool = sync.Pool{New: func() any { return new([bufferBytes]byte) }}
