package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/services/dns/forward"
	"tapestry.dev/tapestry/share/conns"
)

// Options of a Server.
type Options struct {
	// Zone is the cluster's domain; "" is cluster.local.
	Zone string
	// Serves reports whether an address is that of a ready endpoint of a Service with ClusterIPs: such an
	// endpoint has a name after its address. Nil: none has.
	Serves func(namespace, name string, a netip.Addr) bool
	// Upstreams gives the servers that other questions go to, best first. Nil or none: they get REFUSED.
	Upstreams func() []netip.AddrPort
	// Dial connects to an upstream ("udp" or "tcp"). Nil uses host sockets.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout is how long one upstream may take before the next is asked; 0 is 2 seconds.
	Timeout time.Duration
	// MaxForwards bounds the questions that wait for an upstream at once, and MaxConns the TCP connections. Clients
	// share them: with one more, the client with the most loses its oldest question, which gets SERVFAIL, or the
	// connection that was idle for longest. 0 is 1000 and 256.
	MaxForwards, MaxConns int
	// Owner says which client an address is of; nil: each is a client by itself.
	Owner func(netip.Addr) netip.Addr
	// Logger gets a line when an upstream fails or leads back here. Nil discards.
	Logger *slog.Logger
}

const (
	// idleTimeout closes a TCP connection without questions (RFC 7766 6.2.3).
	idleTimeout = 10 * time.Second
	// maxChase bounds a chain of ExternalName Services that name one another.
	maxChase = 8
	// drainTimeout is how long Serve waits for questions under way when it ends.
	drainTimeout = 2 * time.Second
)

// Server answers DNS questions. It holds no socket: Serve is given them.
type Server struct {
	opts    Options
	zone    string
	forward *forward.Forwarder
	conns   conns.Conns
	counts  counts
	config  atomic.Pointer[Config]
	current atomic.Pointer[indexed]
	mu      sync.Mutex // held while a view is made
}

// indexed is a view and the Config it was made of.
type indexed struct {
	config *Config
	view   *view
}

// New makes a Server. Before the first Set, questions about the cluster get SERVFAIL: a name that does not exist
// would be believed.
func New(opts Options) *Server {
	if opts.Zone == "" {
		opts.Zone = "cluster.local"
	}
	if opts.Serves == nil {
		opts.Serves = func(string, string, netip.Addr) bool { return false }
	}
	if opts.Owner == nil {
		opts.Owner = func(a netip.Addr) netip.Addr { return a }
	}
	if opts.MaxConns == 0 {
		opts.MaxConns = 256
	}
	s := &Server{opts: opts, zone: dns.CanonicalName(opts.Zone), conns: conns.New(opts.MaxConns, opts.Owner), counts: newCounts()}
	s.forward = forward.New(forward.Options{
		Upstreams: opts.Upstreams, Own: s.own, Dial: opts.Dial, Timeout: opts.Timeout, MaxWaiting: opts.MaxForwards, Logger: opts.Logger,
	})
	return s
}

// Set makes c what is answered from. It may be called again and again; a c that shares its lists with the last one
// costs nothing. The Server keeps c's lists: they must not be changed afterwards.
func (s *Server) Set(c Config) {
	if last := s.config.Load(); last == nil || !last.shares(&c) {
		s.config.Store(&c)
	}
}

// shares reports whether c and d are the same by the identity of their lists.
func (c *Config) shares(d *Config) bool {
	return slices.Equal(c.Addrs, d.Addrs) && identical(c.Services, d.Services) && identical(c.Pods, d.Pods)
}

func identical[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// own are the addresses this very server answers at.
func (s *Server) own() []netip.Addr {
	if c := s.config.Load(); c != nil {
		return c.Addrs
	}
	return nil
}

// Serve answers on pc (UDP) and l (TCP), either of which may be nil, until ctx ends; then it closes both and returns
// nil. It may be called several times at once, with other sockets.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var servers []*dns.Server
	if pc != nil {
		servers = append(servers, &dns.Server{PacketConn: pc, UDPSize: dns.MaxMsgSize})
	}
	if l != nil {
		servers = append(servers, &dns.Server{Listener: s.conns.Over(l), MaxTCPQueries: -1,
			IdleTimeout: func() time.Duration { return idleTimeout }})
	}
	done := make(chan error, len(servers))
	for _, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { s.handle(ctx, w, r) })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			done <- srv.ActivateAndServe()
			cancel() // one socket without the other is half a server
		}()
		stop := context.AfterFunc(ctx, func() {
			select {
			case <-started:
				drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
				defer cancel()
				_ = srv.ShutdownContext(drain)
			case <-ended:
			}
		})
		defer stop()
	}
	var errs []error
	for range servers {
		errs = append(errs, <-done)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

func (s *Server) handle(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) {
	began := time.Now()
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	from := forward.Client{Addr: conns.ClientOf(w.RemoteAddr()), TCP: tcp}
	m := s.reply(ctx, forward.Client{Addr: s.opts.Owner(from.Addr), TCP: tcp}, r)
	if err := w.WriteMsg(m); err != nil {
		// A name in it may fit no message (RFC 1035, section 2.3.4), and the client is not to wait for that. What the network
		// does not take is the client's loss only; it asks again.
		m = new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
		_ = w.WriteMsg(m)
	}
	s.counts.note(from, r, m, time.Since(began))
}

// reply is the whole answer to r, fit for the transport.
func (s *Server) reply(ctx context.Context, from forward.Client, r *dns.Msg) *dns.Msg {
	m := s.resolve(ctx, from, r)
	m.Compress = true
	size := dns.MaxMsgSize
	if opt := r.IsEdns0(); opt != nil {
		if m.IsEdns0() == nil {
			m.SetEdns0(forward.UDPSize, opt.Do())
		}
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
		}
		if !from.TCP {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), forward.UDPSize)
		}
	} else if !from.TCP {
		size = dns.MinMsgSize
	}
	m.Truncate(size)
	return m
}

func (s *Server) resolve(ctx context.Context, from forward.Client, r *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	if len(r.Question) != 1 || r.Response {
		return m.SetRcode(r, dns.RcodeFormatError)
	}
	if opt := r.IsEdns0(); opt != nil && opt.Version() != 0 {
		return m.SetReply(r)
	}
	m.SetReply(r)
	m.RecursionAvailable = true
	switch q := r.Question[0]; {
	case r.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused
	case s.forward.IsProbe(q.Name):
		m.Rcode = dns.RcodeNameError
	case dns.IsSubDomain(s.zone, dns.CanonicalName(q.Name)):
		s.local(ctx, from, m, q)
	default:
		if v := s.view(); v != nil {
			if res, ok := v.ptr(q); ok {
				m.Authoritative = true
				s.fill(m, v, res)
				return m
			}
		}
		return s.forward.Exchange(ctx, from, r)
	}
	return m
}

// local answers a question about the zone into m, following the CNAMEs of ExternalName Services.
func (s *Server) local(ctx context.Context, from forward.Client, m *dns.Msg, q dns.Question) {
	v := s.view()
	if v == nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	m.Authoritative = true
	for range maxChase {
		res := v.answer(q)
		if q.Qtype == dns.TypeANY && res.rcode == dns.RcodeSuccess && len(res.answer) == 0 {
			// RFC 8482 4.2: one made-up record instead of everything.
			res.answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
		}
		s.fill(m, v, res)
		if res.target == "" {
			return
		}
		q.Name = res.target
		if !dns.IsSubDomain(s.zone, dns.CanonicalName(q.Name)) {
			s.chase(ctx, from, m, q)
			return
		}
	}
	m.Rcode = dns.RcodeServerFailure // a circle
}

// chase asks the upstreams for the target of a CNAME. The code of the answer is that of the last name (RFC 6604).
func (s *Server) chase(ctx context.Context, from forward.Client, m *dns.Msg, q dns.Question) {
	ask := new(dns.Msg)
	ask.SetQuestion(q.Name, q.Qtype)
	ask.SetEdns0(forward.UDPSize, false)
	got := s.forward.Exchange(ctx, from, ask)
	m.Rcode = got.Rcode
	m.Truncated = got.Truncated
	m.Answer = append(m.Answer, got.Answer...)
	for _, rr := range got.Ns {
		if _, ok := rr.(*dns.SOA); ok {
			m.Ns = append(m.Ns, rr)
		}
	}
}

// fill adds what the zone says to m.
func (s *Server) fill(m *dns.Msg, v *view, res result) {
	if len(res.answer) > 1 {
		// Many clients use the first address only.
		rand.Shuffle(len(res.answer), func(i, j int) { res.answer[i], res.answer[j] = res.answer[j], res.answer[i] })
	}
	m.Rcode = res.rcode
	m.Answer = append(m.Answer, res.answer...)
	m.Extra = append(m.Extra, res.extra...)
	if len(res.answer) == 0 {
		m.Ns = append(m.Ns, v.soa())
	}
}

// view is that of the Config in force, made at its first question.
func (s *Server) view() *view {
	c := s.config.Load()
	if c == nil {
		return nil
	}
	if i := s.current.Load(); i != nil && i.config == c {
		return i.view
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c = s.config.Load() // it may be another by now
	if i := s.current.Load(); i != nil && i.config == c {
		return i.view
	}
	v := newView(c, s.zone, s.opts.Serves)
	s.current.Store(&indexed{c, v})
	return v
}
