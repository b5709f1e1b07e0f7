package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"
)

// Limits of the client side. There is none on the length of a body or a response: streams and uploads take what they take.
const (
	headerTimeout  = 10 * time.Second // from connect, or a request's first byte, to the end of its header; the TLS handshake too
	idleTimeout    = 2 * time.Minute  // between two requests; longer than the minute most client pools keep connections for
	maxHeaderBytes = 128 << 10        // four times nginx's default: cookies grow
)

// Options are what a Gateway needs from its surroundings.
type Options struct {
	// Dial connects to endpoints; network is "tcp". nil is net.Dialer's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Endpoints gives the addresses that serve a Service port at the moment, none for one that is not there. It is asked with
	// every request. While nothing changes it gives the very same list, which is borrowed; nil: nothing has endpoints.
	Endpoints func(ServicePort) []netip.AddrPort
	// Logger gets what happens asynchronously; nil discards.
	Logger *slog.Logger
	// ResponseTimeout is how long an HTTP/1.1 backend may take from the end of the request to the header of its response,
	// before the client gets 504. 0 is one minute. It does not hold for gRPC, whose streams may begin with silence.
	ResponseTimeout time.Duration
}

// Gateway serves HTTP and HTTPS. Make it with New, give it a Config with Set and listeners with ServeHTTP and ServeHTTPS.
type Gateway struct {
	log      *slog.Logger
	server   *http.Server
	backends backends
	resolve  func(ServicePort) []netip.AddrPort
	state    atomic.Pointer[state]
	fallback func() (*tls.Certificate, error) // made and logged at the first call
	upgrades upgrades
	cut      context.CancelFunc // ends what outlives Shutdown
	stats    counters
}

// New returns a Gateway that answers 404 until Set is called.
func New(o Options) *Gateway {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Endpoints == nil {
		o.Endpoints = func(ServicePort) []netip.AddrPort { return nil }
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.ResponseTimeout == 0 {
		o.ResponseTimeout = time.Minute
	}
	base, cut := context.WithCancel(context.Background())
	g := &Gateway{log: o.Logger, cut: cut, resolve: o.Endpoints, backends: newBackends(o)}
	g.fallback = newFallback(o.Logger)
	g.state.Store(&state{})

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	g.server = &http.Server{
		Handler:           http.HandlerFunc(g.serve),
		Protocols:         protocols,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: g.certificate},
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withClient,
		// Handshake errors and broken requests are the clients' and come at their will: not above debug.
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	return g
}

// Set makes c the whole state. It may be called again and again: routes that are those of the last Config, the very same
// list, are not compiled again, and so with certificates. Requests under way finish as they began. On error, which names the
// bad route, nothing is changed. The Gateway keeps c's slices: do not write to them afterwards.
func (g *Gateway) Set(c Config) error {
	for {
		old := g.state.Load()
		next, err := g.compile(c, old)
		if err != nil {
			return fmt.Errorf("ingress: %w", err)
		}
		if g.state.CompareAndSwap(old, next) {
			return nil
		}
	}
}

// ServeHTTP accepts HTTP connections on l until ctx ends or Shutdown is called, and returns nil then. It closes l.
// Connections that were accepted are served on until Shutdown.
func (g *Gateway) ServeHTTP(ctx context.Context, l net.Listener) error {
	return g.accept(ctx, l, g.server.Serve)
}

// ServeHTTPS is ServeHTTP with TLS in front.
func (g *Gateway) ServeHTTPS(ctx context.Context, l net.Listener) error {
	return g.accept(ctx, l, func(l net.Listener) error { return g.server.ServeTLS(l, "", "") })
}

func (g *Gateway) accept(ctx context.Context, l net.Listener, serve func(net.Listener) error) error {
	defer l.Close() // serve returns early, without closing, once the server is shut down
	defer context.AfterFunc(ctx, func() { l.Close() })()
	err := serve(l)
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("ingress: serve %s: %w", l.Addr(), err)
}

// Shutdown stops accepting and waits for the requests and upgraded connections under way. When ctx ends first, the rest
// is cut and ctx's error returned. The Gateway cannot be used again.
func (g *Gateway) Shutdown(ctx context.Context) error {
	err := g.server.Shutdown(ctx)
	if err == nil {
		err = g.upgrades.wait(ctx)
	}
	if err != nil {
		g.stats.cut.Add(uint64(max(0, g.stats.inFlight.Load())))
		err = fmt.Errorf("ingress: shutdown: connections were cut: %w", err)
	}
	g.cut()
	g.server.Close()
	g.upgrades.close()
	g.upgrades.wait(context.Background()) // they end now: both sides are closed
	g.backends.close()
	return err
}

// serve is every request's way.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	g.stats.requests.Add(1)
	g.stats.inFlight.Add(1)
	defer g.stats.inFlight.Add(-1)

	if r.Method == http.MethodConnect {
		http.Error(w, "CONNECT is not served here", http.StatusMethodNotAllowed)
		return
	}
	u := g.state.Load().upstream(r.Host, r.URL.Path)
	switch {
	case u == nil:
		g.stats.noRoute.Add(1)
		http.Error(w, "no route for this host and path", http.StatusNotFound)
	case len(u.endpoints()) == 0:
		g.stats.noEndpoint.Add(1)
		http.Error(w, errNoEndpoint.Error(), http.StatusServiceUnavailable)
	case r.Header.Get("Upgrade") != "":
		c := r.Context().Value(clientKey{}).(*client)
		g.upgrades.begin(c)
		defer g.upgrades.end(c)
		u.proxy.ServeHTTP(w, r)
	default:
		u.proxy.ServeHTTP(w, r)
	}
}

// client is what backends are told about a connection, made once for all its requests. The slices are header values,
// shared by requests: never written to.
type client struct {
	conn              net.Conn
	addr, proto, port []string
}

type clientKey struct{}

// withClient is the server's ConnContext.
func withClient(ctx context.Context, c net.Conn) context.Context {
	proto, port := "http", "80"
	if _, ok := c.(*tls.Conn); ok {
		proto, port = "https", "443"
	}
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		port = strconv.Itoa(a.Port)
	}
	addr := c.RemoteAddr().String()
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		addr = a.AddrPort().Addr().Unmap().WithZone("").String()
	}
	return context.WithValue(ctx, clientKey{}, &client{conn: c, addr: []string{addr}, proto: []string{proto}, port: []string{port}})
}
