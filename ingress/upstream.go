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
	dialTimeout = 3 * time.Second // three SYNs: a pod of this cluster answers or is gone
	// downFor is how long an endpoint is left out after a failed dial. The source of endpoints says within about that
	// time whether it is really gone.
	downFor = time.Second
	// idleConns kept per endpoint: bursts of that many requests at once find open connections. allIdleConns bounds
	// them over all.
	idleConns       = 256
	allIdleConns    = 4096
	idleConnTimeout = time.Minute
	pingTimeout     = 15 * time.Second // of silence on an h2c connection, before it is asked
	bufferBytes     = 32 << 10
	// replayBytes of a gRPC stream are kept until its backend begins to answer: more than most messages are long.
	replayBytes = 16 << 10
)

// backends are the pooled connections, shared by all upstreams and states.
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
			ResponseTimeout: o.ResponseTimeout,
			IdleTimeout:     idleConnTimeout,
			MaxIdle:         allIdleConns, MaxIdlePerAddr: idleConns,
		}),
		h2c: &http.Transport{
			DialContext:        dial,
			DisableCompression: true, // the body is the client's business
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

var errNoEndpoint = errors.New("no endpoint is ready")

// dialError marks an error that came before anything was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "dial: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// upstream is the endpoints of one Service port.
type upstream struct {
	port      ServicePort
	server    *Server
	next      atomic.Uint32
	resolved  atomic.Pointer[resolved]
	resolving sync.Mutex // held while resolved is made
}

func (s *Server) newUpstream(port ServicePort) *upstream { return &upstream{port: port, server: s} }

// ask sends the request to an endpoint. A failed dial has sent nothing, so that the next endpoint is asked. So is it,
// once, for a harmless request that an endpoint did not begin to answer: a pod that ends may still take connections.
func (rq *request) ask() (*http.Response, error) {
	u := rq.u
	endpoints := u.endpoints()
	if len(endpoints) == 0 {
		return nil, errNoEndpoint
	}
	send, harmless := rq.sender()
	now := time.Now().UnixNano()
	start := int(u.next.Add(1) % uint32(len(endpoints)))
	allDown := allDown(endpoints, now)
	var err error
	for i := range endpoints {
		e := endpoints[(start+i)%len(endpoints)]
		if !allDown && e.downUntil.Load() > now {
			continue
		}
		if err != nil {
			u.server.stats.retries.Add(1)
		}
		var resp *http.Response
		if resp, err = send(e.addr); err == nil {
			return resp, nil
		}
		switch {
		case rq.in.Context().Err() != nil:
			return nil, err
		case errors.As(err, new(*dialError)):
			e.downUntil.Store(time.Now().Add(downFor).UnixNano())
		case harmless && errors.Is(err, http1.ErrUnanswered):
			harmless = false // a request that ends its server is to end no more than two
		default:
			return nil, err
		}
	}
	return nil, err
}

// allDown says that there is no better choice than an endpoint that was not reached lately.
func allDown(endpoints []*endpoint, now int64) bool {
	for _, e := range endpoints {
		if e.downUntil.Load() <= now {
			return false
		}
	}
	return true
}

// sender gives a func that sends the request to an address, and whether it may be sent twice.
func (rq *request) sender() (send func(addr string) (*http.Response, error), harmless bool) {
	ctx, header := rq.in.Context(), forBackend(rq.in, rq.client)
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
		Body: body, Length: rq.in.ContentLength, Trailer: rq.in.Trailer, Interim: rq.interim,
	}
	return func(addr string) (*http.Response, error) { return rq.s.backends.http1.Do(ctx, addr, r) }, r.Replayable()
}

// sendH2C sends the request, again over another connection when the backend says that it did not begin it (RFC 9113
// sections 6.8 and 8.7), as it does when it shuts down. net/http knows when that is; it needs the body once more.
func (rq *request) sendH2C(addr string, header http.Header, body *replay.Body) (*http.Response, error) {
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // else net/http would name itself
	}
	r := &http.Request{
		Method: rq.in.Method, Host: rq.in.Host, Header: header, ContentLength: rq.in.ContentLength, Trailer: rq.in.Trailer,
		URL: &url.URL{Scheme: "http", Host: addr, Opaque: rq.target.Raw},
	}
	if strings.HasPrefix(rq.target.Raw, "//") { // what is opaque would be a host and a path then
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

// isGRPC: gRPC needs HTTP/2 from end to end (gRPC over HTTP2, "Requests": content type application/grpc[+proto, ...]).
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") &&
		!strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web")
}

// pool has the buffers that bodies are copied through.
var pool = sync.Pool{New: func() any { return new([bufferBytes]byte) }}
