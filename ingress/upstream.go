package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Limits of the backend side.
const (
	dialTimeout = 3 * time.Second // three SYNs: a pod of this cluster answers or is gone
	// downFor is how long an endpoint is left out after a failed dial. The source of endpoints says within about that
	// time whether it is really gone.
	downFor = time.Second
	// idleConns kept per endpoint: bursts of that many requests at once find open connections.
	idleConns       = 256
	idleConnTimeout = time.Minute
	pingTimeout     = 15 * time.Second // of silence on an h2c connection, before it is asked
	bufferBytes     = 32 << 10
)

// backends are the pooled transports, shared by all upstreams and states.
type backends struct {
	http1, h2c *http.Transport
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
	transport := func() *http.Transport {
		return &http.Transport{
			DialContext:         dial,
			DisableCompression:  true, // the body is the client's business
			MaxIdleConnsPerHost: idleConns,
			IdleConnTimeout:     idleConnTimeout,
			Protocols:           new(http.Protocols),
		}
	}
	b := backends{http1: transport(), h2c: transport()}
	b.http1.Protocols.SetHTTP1(true)
	b.http1.ResponseHeaderTimeout = o.ResponseTimeout
	b.http1.ExpectContinueTimeout = time.Second
	b.http1.ReadBufferSize, b.http1.WriteBufferSize = bufferBytes, bufferBytes
	b.h2c.Protocols.SetUnencryptedHTTP2(true)
	b.h2c.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout}
	return b
}

func (b *backends) close() {
	b.http1.CloseIdleConnections()
	b.h2c.CloseIdleConnections()
}

// errNoEndpoint: the last one left after the request was let in.
var errNoEndpoint = errors.New("no endpoint is ready")

// dialError marks an error that came before anything was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return "dial: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// upstream proxies to the endpoints of one Service port.
type upstream struct {
	port      ServicePort
	gateway   *Gateway
	next      atomic.Uint32
	proxy     *httputil.ReverseProxy
	resolved  atomic.Pointer[resolved]
	resolving sync.Mutex // held while resolved is made
}

var _ http.RoundTripper = (*upstream)(nil)

func (g *Gateway) newUpstream(port ServicePort) *upstream {
	u := &upstream{port: port, gateway: g}
	u.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      u,
		BufferPool:     buffers{},
		ErrorHandler:   u.fail,
		ModifyResponse: u.count,
		ErrorLog:       g.server.ErrorLog,
	}
	return u
}

// rewrite makes the request to the backend out of the client's. ReverseProxy has removed the hop-by-hop headers.
func rewrite(p *httputil.ProxyRequest) {
	out, h := p.Out, p.Out.Header
	out.URL.Scheme = "http"
	out.URL.RawQuery = p.In.URL.RawQuery // nothing here reads the query, so it need not be made safe to parse
	out.Trailer = p.In.Trailer           // filled when the body has been read, which a copy would not see
	for k := range h {
		if strings.HasPrefix(k, "X-Forwarded-") {
			delete(h, k)
		}
	}
	c := p.In.Context().Value(clientKey{}).(*client)
	h["X-Forwarded-For"], h["X-Real-Ip"] = c.addr, c.addr
	h["X-Forwarded-Proto"], h["X-Forwarded-Port"] = c.proto, c.port
	h["X-Forwarded-Host"] = []string{p.In.Host}
	if httpguts.HeaderValuesContainsToken(h["Upgrade"], "h2c") {
		h.Del("Upgrade")
		h.Del("Connection")
		h.Del("Http2-Settings")
	}
}

// RoundTrip sends the request to an endpoint. It writes to req, which is ReverseProxy's own copy.
func (u *upstream) RoundTrip(req *http.Request) (*http.Response, error) {
	transport := u.gateway.backends.http1
	if isGRPC(req) {
		transport = u.gateway.backends.h2c
	}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = heldBody{req.Body}
	}
	endpoints := u.endpoints()
	if len(endpoints) == 0 {
		return nil, errNoEndpoint
	}
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
			u.gateway.stats.retries.Add(1)
		}
		req.URL.Host = e.addr
		var resp *http.Response
		if resp, err = transport.RoundTrip(req); err == nil {
			return resp, nil
		}
		if !errors.As(err, new(*dialError)) || req.Context().Err() != nil {
			return nil, err
		}
		e.downUntil.Store(time.Now().Add(downFor).UnixNano())
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

// isGRPC: gRPC needs HTTP/2 from end to end (gRPC over HTTP2, "Requests": content type application/grpc[+proto, ...]).
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") &&
		!strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web")
}

// heldBody keeps the transport from closing the body after a failed dial: the next endpoint needs it. ReverseProxy
// closes what is inside.
type heldBody struct{ io.Reader }

func (heldBody) Close() error { return nil }

// count is ReverseProxy's ModifyResponse.
func (u *upstream) count(r *http.Response) error {
	u.gateway.stats.class(r.StatusCode)
	return nil
}

// fail is ReverseProxy's ErrorHandler: no response came from the backend.
func (u *upstream) fail(w http.ResponseWriter, r *http.Request, err error) {
	stats := &u.gateway.stats
	var timeout net.Error
	switch {
	case r.Context().Err() != nil: // the client left, nobody reads the answer
		stats.clientGone.Add(1)
		w.WriteHeader(http.StatusBadGateway)
		return
	case errors.Is(err, errNoEndpoint):
		stats.noEndpoint.Add(1)
		http.Error(w, errNoEndpoint.Error(), http.StatusServiceUnavailable)
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		stats.timeout.Add(1)
		http.Error(w, "the backend did not answer in time", http.StatusGatewayTimeout)
	default:
		stats.badGateway.Add(1)
		http.Error(w, "the backend could not be reached or broke off", http.StatusBadGateway)
	}
	u.gateway.log.LogAttrs(r.Context(), slog.LevelDebug, "backend failed",
		slog.String("service", u.port.String()), slog.String("endpoint", r.URL.Host), slog.String("err", fmt.Sprint(err)))
}

// buffers is ReverseProxy's BufferPool.
type buffers struct{}

var pool = sync.Pool{New: func() any { return new([bufferBytes]byte) }}

func (buffers) Get() []byte  { return pool.Get().(*[bufferBytes]byte)[:] }
func (buffers) Put(b []byte) { pool.Put((*[bufferBytes]byte)(b)) }
