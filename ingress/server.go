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
	"runtime"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/share/limbo"
)

// Limits of the client side. The length of a body or a response is not limited, nor is the time that it takes as long
// as bytes arrive: streams and uploads may be long.
const (
	headerTimeout  = 10 * time.Second // from connect, or a request's first byte, to the end of its header; TLS included
	idleTimeout    = 2 * time.Minute  // between two requests; longer than most client pools keep connections, a minute
	maxHeaderBytes = 128 << 10        // four times nginx's default: cookies grow
	maxStreams     = 250              // requests under way in one HTTP/2 connection
)

// Options configure a Server for its life.
type Options struct {
	// Dial connects to endpoints; network is "tcp". nil: that of net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Endpoints returns the addresses that serve a Service port at the moment, none for an unknown Service port. It is
	// called with every request. While nothing changes it returns the same slice, which is borrowed. nil: no Service
	// port has endpoints.
	Endpoints func(ServicePort) []netip.AddrPort
	// Law returns what says which clients may reach which endpoints. It is called with every request, and asked once
	// about its client. If Law is nil or returns nil, everybody may.
	Law func() Law
	// Who returns who has made the connection that came from client to at. It is called with each one, when something
	// was read of it, and Law is asked about the result; nil: whoever has the address.
	Who func(client, at netip.AddrPort) netip.Addr
	// Method says how one of the endpoints of a Service port is chosen for a request. It is asked again when Endpoints
	// returns another slice. nil: in turn, as for balance.Hash.
	Method func(ServicePort) balance.Method
	// Logger gets messages about what happens outside of the Server's methods; nil discards them.
	Logger *slog.Logger
	// ResponseTimeout is how long an HTTP/1.1 backend may take from the end of the request to the header of its
	// response, before the client gets 504. 0 is one minute. A backend that is asked whether it wants the body
	// (100 Continue) has as long to answer. gRPC has no such limit, since its streams may begin with silence.
	ResponseTimeout time.Duration
	// StallTimeout is how long a client may send nothing of a body that the Server waits for, or accept nothing of a
	// response. 0 is one minute.
	StallTimeout time.Duration
	// MaxConns is how many connections all clients together may have, and how many of their requests in HTTP/2 may be
	// under way. 0 is 4096. When all are in use, the client with most of them loses one to a client with fewer. A
	// client is an IPv4 address or an IPv6 network of 64 bits.
	MaxConns int
	// Limbo is how many descriptors there are to keep refused connections with for a while (package limbo), at least 2;
	// 0: they are closed at once.
	Limbo int
	// MaxIdle is how many connections to HTTP/1.1 backends are kept while they are idle. 0 is 4096.
	MaxIdle int
}

// Server serves HTTP and HTTPS. Make it with New, give it a Config with Set and listeners with ServeHTTP and
// ServeHTTPS.
type Server struct {
	log             *slog.Logger
	server          *http.Server
	backends        backends
	resolve         func(ServicePort) []netip.AddrPort
	law             func() Law
	denials         denials
	lists           atomic.Uint64 // numbers those of endpoints
	method          func(ServicePort) balance.Method
	source          balance.Source
	responseTimeout time.Duration
	stallTimeout    time.Duration
	guests          guests
	streams         *share.Limit[netip.Prefix, context.CancelCauseFunc] // requests in HTTP/2
	state           atomic.Pointer[state]
	fallback        func() (*tls.Certificate, error) // made and logged at the first call
	signing         *signing
	upgrades        upgrades
	cut             context.CancelFunc // ends requests that outlive Shutdown
	stats           counters
}

// New returns a Server that answers 404 until Set is called.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Endpoints == nil {
		o.Endpoints = func(ServicePort) []netip.AddrPort { return nil }
	}
	if o.Law == nil {
		o.Law = func() Law { return nil }
	}
	if o.Method == nil {
		o.Method = func(ServicePort) balance.Method { return balance.Hash }
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.ResponseTimeout == 0 {
		o.ResponseTimeout = time.Minute
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = time.Minute
	}
	if o.MaxConns == 0 {
		o.MaxConns = 4096
	}
	if o.MaxIdle == 0 {
		o.MaxIdle = allIdleConns
	}
	base, cut := context.WithCancel(context.Background())
	s := &Server{
		log: o.Logger, cut: cut, resolve: o.Endpoints, law: o.Law, method: o.Method, backends: newBackends(o),
		responseTimeout: o.ResponseTimeout, stallTimeout: o.StallTimeout,
		streams: share.New[netip.Prefix, context.CancelCauseFunc](share.Options[netip.Prefix]{Total: o.MaxConns}),
	}
	s.guests = guests{
		turn:  share.NewRounds[netip.Prefix](2 * runtime.GOMAXPROCS(0)).Pass,
		limit: share.New[netip.Prefix, *conn](share.Options[netip.Prefix]{Total: o.MaxConns}),
		lobby: share.NewLobby[netip.Prefix](fewAtOnce, beginEvery/time.Duration(runtime.GOMAXPROCS(0)), arrive),
		stats: &s.stats, who: o.Who,
	}
	if o.Limbo > 0 {
		s.guests.limbo = limbo.New[netip.Prefix](o.Limbo)
	}
	s.fallback, s.signing = newFallback(o.Logger), newSigning()
	s.state.Store(&state{})

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.server = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: o.StallTimeout, SendPingTimeout: pingTimeout, PingTimeout: pingTimeout},
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate},
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withClient,
		ConnState:         noteState,
		// OPTIONS * is for a backend to answer.
		DisableGeneralOptionsHandler: true,
		// Clients cause handshake errors and broken requests, as many as they like, so these are logged at debug level.
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Set makes c the whole state. Routes are compiled again only when their slice is not that of the last Config; the same
// holds for certificates. Requests under way keep the routes that they began with. On an error, which names the bad
// route or certificate, nothing is changed. The Server keeps c's slices: the caller must not write to them afterwards.
func (s *Server) Set(c Config) error {
	for {
		old := s.state.Load()
		next, err := s.compile(c, old)
		if err != nil {
			return fmt.Errorf("ingress: %w", err)
		}
		if s.state.CompareAndSwap(old, next) {
			return nil
		}
	}
}

// ServeHTTP accepts HTTP connections on l until ctx ends or Shutdown is called, and then returns nil. It closes l.
// Accepted connections are served until Shutdown.
func (s *Server) ServeHTTP(ctx context.Context, l net.Listener) error {
	return s.accept(ctx, l, s.server.Serve)
}

// ServeHTTPS is ServeHTTP for connections with TLS.
func (s *Server) ServeHTTPS(ctx context.Context, l net.Listener) error {
	return s.accept(ctx, l, func(l net.Listener) error { return s.server.ServeTLS(l, "", "") })
}

func (s *Server) accept(ctx context.Context, l net.Listener, serve func(net.Listener) error) error {
	defer l.Close() // serve returns early, without closing, once the server is shut down
	defer context.AfterFunc(ctx, func() { l.Close() })()
	later := newLaterListener(l.Addr())
	go serve(later) // until Shutdown
	err := serve(guestListener{l, &s.guests, later})
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("ingress: serve %s: %w", l.Addr(), err)
}

// Shutdown stops accepting and waits for the requests and upgraded connections under way. Connections that wait in the
// lobby are begun, and have a second for a request. When ctx ends first, it cuts the rest and returns ctx's error. The
// Server cannot be used again.
func (s *Server) Shutdown(ctx context.Context) error {
	s.guests.ending.Store(true)
	s.guests.lobby.Open() // who waits may have sent a request
	s.guests.begun(ctx)   // net/http answers no request that it reads after its Shutdown was called
	err := s.server.Shutdown(ctx)
	if err == nil && s.upgrades.Wait(ctx) > 0 {
		err = ctx.Err()
	}
	if err != nil {
		s.stats.cut.Add(uint64(max(0, s.stats.inFlight.Load())))
		err = fmt.Errorf("ingress: shutdown: connections were cut: %w", err)
	}
	s.cut()
	s.server.Close()
	s.guests.limbo.Close()
	s.upgrades.close()
	s.upgrades.Wait(context.Background()) // upgraded connections end soon, since both their sides are closed
	s.backends.close()
	return err
}

// serve is the handler of every request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.stats.requests.Add(1)
	s.stats.inFlight.Add(1)
	defer s.stats.inFlight.Add(-1)
	rq := newRequest(s, w, r)
	if rq.client.under != nil {
		rq.client.under.started()
	}
	defer func() {
		// net/http may write more after serve returns. That write must not wait for the client without end.
		_ = rq.control.SetWriteDeadline(time.Now().Add(s.stallTimeout))
		if r.Context().Err() == nil {
			rq.answers() // it may be a refusal
		}
	}()
	if rq.body != nil {
		defer rq.body.finish()
	}
	if r.ProtoMajor == 2 { // net/http begins hundreds of them before one gets on
		end, ok := rq.takePlace()
		if !ok {
			s.stats.refused.Add(1)
			http.Error(w, "too many requests are under way", http.StatusServiceUnavailable)
			return
		}
		defer end()
	}
	rq.turn()
	switch {
	case r.Context().Err() != nil: // the client took it back before it began
		s.stats.clientGone.Add(1)
		return
	case rq.in.Context().Err() != nil: // another request took its place
		rq.fail(errShare)
		return
	}
	if r.Method == http.MethodConnect {
		http.Error(w, "CONNECT is not served here", http.StatusMethodNotAllowed)
		return
	}
	if err := rq.parse(); err != nil {
		s.stats.badRequest.Add(1)
		w.Header()["Connection"] = []string{"close"}
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if passes(r.Header) >= mostPasses {
		s.stats.looped.Add(1)
		http.Error(w, "the backend of this request leads back to an Ingress", http.StatusLoopDetected)
		return
	}
	to := s.state.Load().way(r.Host, rq.target.Path)
	rq.u, rq.upgrades = to.upstream, to.upgrades
	rq.asked = askedProtocols(r, to.upgrades)
	switch {
	case rq.u == nil:
		s.stats.noRoute.Add(1)
		http.Error(w, "no route for this host and path", http.StatusNotFound)
	case rq.asked != nil:
		s.upgrades.begin(rq.client)
		defer s.upgrades.end(rq.client)
		rq.pass()
	default:
		rq.pass()
	}
}
