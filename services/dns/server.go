package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/services/dns/forward"
	"tapestry.dev/tapestry/services/dns/stream"
	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/share/conns"
)

// Options are the settings of a Server.
type Options struct {
	Choices
	// Zone is the cluster's domain; "" means cluster.local.
	Zone string
	// Serves reports whether an address is that of a ready endpoint of a Service with ClusterIPs. Such an endpoint has
	// a name made of its address. Nil means that no endpoint has.
	Serves func(namespace, name string, a netip.Addr) bool
	// Upstreams returns the servers for all other questions, best first. If it is nil or returns none, those questions
	// get REFUSED.
	Upstreams func() []netip.AddrPort
	// Dial connects to an upstream ("udp" or "tcp"). Nil uses host sockets.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout is how long one upstream may take before the next is asked; 0 means 2 seconds.
	Timeout time.Duration
	// MaxForwards limits the questions that wait for an upstream at the same time, and MaxConns the TCP connections.
	// Clients share these limits. When a limit is exceeded, the client with the most loses its oldest question, which
	// gets SERVFAIL, or its connection that was idle for longest. 0 means 1000 questions and 256 connections.
	MaxForwards, MaxConns int
	// Owner returns the address that stands for the client who has the given address. Nil means that each address is a
	// client by itself.
	Owner func(netip.Addr) netip.Addr
	// Answered is told of every answer; nil: nobody is. It must be quick, and not block. Its argument is borrowed.
	Answered func(*Answered)
	// Logger is told when an upstream fails or forwards back to this server. Nil discards messages.
	Logger *slog.Logger
}

const (
	// idleTimeout is the time after which a TCP connection without questions is closed (RFC 7766 6.2.3).
	idleTimeout = 10 * time.Second
	// maxChase limits the length of a chain of ExternalName Services that name one another.
	maxChase = 8
	// drainTimeout is how long Serve waits, when it ends, for questions over UDP that are under way.
	drainTimeout = 2 * time.Second
	// settleTime is the Settle of stream.Options. Clients are on this node, and connect within a millisecond.
	settleTime = 50 * time.Millisecond
)

// Server answers DNS questions. It opens no sockets; the caller passes them to Serve.
type Server struct {
	opts    Options
	zone    string
	forward *forward.Forwarder
	conns   conns.Conns
	streams *stream.Server
	waiting *share.Limit[netip.Addr, func()] // questions over TCP, until their answers are written
	counts  counts
	config  atomic.Pointer[Config]
	current atomic.Pointer[indexed]
	mu      sync.Mutex // held while a view is made
}

// indexed is a view and the Config from which it was made.
type indexed struct {
	config *Config
	view   *view
}

// New returns a Server. Before the first Set, questions about the cluster get SERVFAIL, because clients would believe
// an answer that a name does not exist.
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
	if opts.MaxForwards == 0 {
		opts.MaxForwards = forward.MaxWaiting
	}
	if opts.MaxConns == 0 {
		opts.MaxConns = 256
	}
	s := &Server{opts: opts, zone: dns.CanonicalName(opts.Zone), conns: conns.New(opts.MaxConns, opts.Owner), counts: newCounts()}
	// As many again as wait for upstreams may wait to be written.
	s.waiting = share.New[netip.Addr, func()](share.Options[netip.Addr]{Total: 2 * opts.MaxForwards})
	s.forward = forward.New(forward.Options{
		Upstreams: opts.Upstreams, Own: s.own, Dial: opts.Dial, Timeout: opts.Timeout, MaxWaiting: opts.MaxForwards,
		LowerCase: opts.LowerCase, Logger: opts.Logger,
	})
	s.streams = stream.New(stream.Options{
		Answer: func(ctx context.Context, q stream.Question) []byte {
			return s.answer(ctx, q.From, q.Msg, forward.Client{TCP: true, Waits: q.Waits})
		},
		Owner:   func(a net.Addr) netip.Addr { return opts.Owner(conns.ClientOf(a)) },
		Waiting: s.waiting, Idle: idleTimeout, Settle: settleTime,
	})
	return s
}

// Set replaces the Config. It may be called repeatedly; a Config with the same lists as the last one costs nothing.
// The Server keeps c's lists, so they must not be changed afterwards.
func (s *Server) Set(c Config) {
	if last := s.config.Load(); last == nil || !last.shares(&c) {
		s.config.Store(&c)
	}
}

// shares reports whether c and d have the same addresses, and the same lists in memory.
func (c *Config) shares(d *Config) bool {
	return slices.Equal(c.Addrs, d.Addrs) && identical(c.Services, d.Services) && identical(c.Pods, d.Pods)
}

func identical[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// own returns the addresses at which this server itself answers.
func (s *Server) own() []netip.Addr {
	if c := s.config.Load(); c != nil {
		return c.Addrs
	}
	return nil
}

// Serve answers on pc (UDP) and l (TCP) until ctx ends. Then it closes both and returns nil. Either may be nil. Serve
// may run several times concurrently with different sockets. After Drain it goes on with pc alone.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serve []func() error
	if pc != nil {
		serve = append(serve, func() error { return s.serveUDP(ctx, pc) })
	}
	if l != nil {
		serve = append(serve, func() error { return s.streams.Serve(ctx, s.conns.Over(l)) })
	}
	done := make(chan error, len(serve))
	for _, f := range serve {
		go func() {
			err := f()
			if err != nil {
				cancel() // a server with only one of its sockets is of no use
			}
			done <- err
		}()
	}
	var errs []error
	for range serve {
		errs = append(errs, <-done)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	return nil
}

// Drain ends what goes over TCP, in every Serve: questions are answered, connections end in order, and no more are
// accepted (package stream). It returns when that is done or ctx ends, and how many connections are left.
func (s *Server) Drain(ctx context.Context) (left int) { return s.streams.Drain(ctx) }

func (s *Server) serveUDP(ctx context.Context, pc net.PacketConn) error {
	started, ended := make(chan struct{}), make(chan struct{})
	defer close(ended)
	srv := &dns.Server{PacketConn: pc, UDPSize: stream.MaxQuestion, NotifyStartedFunc: func() { close(started) }}
	srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		// If the network does not take the answer, only this client is affected, and it asks again.
		_, _ = w.Write(s.answer(ctx, w.RemoteAddr(), r, forward.Client{}))
	})
	defer context.AfterFunc(ctx, func() {
		select {
		case <-started:
			drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
			defer cancel()
			_ = srv.ShutdownContext(drain)
		case <-ended:
		}
	})()
	return srv.ActivateAndServe()
}

// answer returns the bytes of the answer to r. It completes by, which says how the client asks.
func (s *Server) answer(ctx context.Context, from net.Addr, r *dns.Msg, by forward.Client) []byte {
	began := time.Now()
	client := conns.ClientOf(from)
	by.Addr = s.opts.Owner(client)
	m := s.reply(ctx, by, r)
	b, err := m.Pack()
	if err != nil {
		// The answer may contain a name that fits no message (RFC 1035, section 2.3.4). The client then gets an error
		// at once and need not wait.
		m = new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
		b, _ = m.Pack() // it packs what was unpacked
	}
	by.Addr = client
	took := time.Since(began)
	s.counts.note(by, r, m, took)
	s.tell(addrPortOf(from, client), by.TCP, r, m, took)
	return b
}

// reply returns the complete answer to r, cut to what the transport carries.
func (s *Server) reply(ctx context.Context, from forward.Client, r *dns.Msg) *dns.Msg {
	size := sizeFor(from, r)
	m := s.resolve(ctx, from, r, size)
	m.Compress = true
	if opt := r.IsEdns0(); opt != nil {
		if m.IsEdns0() == nil {
			m.SetEdns0(forward.UDPSize, opt.Do())
		}
	}
	truncate(m, size)
	return m
}

// sizeFor is how many bytes the answer to r may have.
func sizeFor(from forward.Client, r *dns.Msg) int {
	if from.TCP {
		return dns.MaxMsgSize
	}
	if opt := r.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), forward.UDPSize)
	}
	return dns.MinMsgSize
}

func (s *Server) resolve(ctx context.Context, from forward.Client, r *dns.Msg, size int) *dns.Msg {
	m := new(dns.Msg)
	if len(r.Question) != 1 || r.Response || count(r.Extra, dns.TypeOPT) > 1 { // RFC 6891 6.1.1
		return m.SetRcode(r, dns.RcodeFormatError)
	}
	if opt := r.IsEdns0(); opt != nil && opt.Version() != 0 {
		return m.SetRcode(r, dns.RcodeBadVers) // RFC 6891 6.1.3
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
		s.local(ctx, from, m, q, size)
	default:
		if v := s.view(); v != nil {
			if res, ok := v.ptr(q, size); ok {
				m.Authoritative = true
				s.fill(m, v, reverseZone(q.Name), res)
				return m
			}
		}
		return s.forward.Exchange(ctx, from, r)
	}
	return m
}

// local writes the answer to a question about the zone into m. It follows the CNAMEs of ExternalName Services.
func (s *Server) local(ctx context.Context, from forward.Client, m *dns.Msg, q dns.Question, size int) {
	v := s.view()
	if v == nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	m.Authoritative = true
	for range maxChase {
		res := v.answer(q, size)
		if q.Qtype == dns.TypeANY && res.rcode == dns.RcodeSuccess && len(res.answer) == 0 {
			// RFC 8482 4.2: one made-up record instead of all records.
			res.answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
		}
		s.fill(m, v, v.zone, res)
		if res.target == "" {
			return
		}
		q.Name = res.target
		if !dns.IsSubDomain(s.zone, dns.CanonicalName(q.Name)) {
			s.chase(ctx, from, m, q)
			return
		}
	}
	m.Rcode = dns.RcodeServerFailure // the chain is too long, or a circle
}

// chase asks the upstreams for the target of a CNAME. The code of the answer is that of the last name (RFC 6604).
func (s *Server) chase(ctx context.Context, from forward.Client, m *dns.Msg, q dns.Question) {
	ask := new(dns.Msg)
	ask.SetQuestion(q.Name, q.Qtype)
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

// fill adds the records of res to m, or the SOA record of the zone when there are none.
func (s *Server) fill(m *dns.Msg, v *view, zone string, res result) {
	m.Rcode = res.rcode
	m.Answer = append(m.Answer, res.answer...)
	m.Extra = append(m.Extra, res.extra...)
	if len(res.answer) == 0 {
		m.Ns = append(m.Ns, v.soa(zone))
	}
}

// view returns the view of the present Config, or nil before the first. It makes the view when it is first needed.
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
	c = s.config.Load() // it may have changed meanwhile
	if i := s.current.Load(); i != nil && i.config == c {
		return i.view
	}
	var last *view
	if i := s.current.Load(); i != nil {
		last = i.view
	}
	v := newView(c, s.zone, &s.opts, last)
	s.current.Store(&indexed{c, v})
	return v
}
