package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// retryAfter is how long an upstream that failed is asked only after all others.
	retryAfter = 5 * time.Second
	// loopRetry is how long an upstream that led back here is not asked.
	loopRetry = 30 * time.Second
	// forwardTimeout bounds all upstreams together; stub resolvers wait for 5 seconds.
	forwardTimeout = 4500 * time.Millisecond
	// probeSuffix is a name that no one else asks for.
	probeSuffix = ".loop-probe.tapestry."
)

// forwarder asks upstreams.
type forwarder struct {
	opts  Options
	own   func() []netip.Addr // the addresses this very server answers at
	slots chan struct{}       // one for each question under way

	mu    sync.Mutex // guards what follows
	state map[netip.AddrPort]*upstream
}

// upstream is what is known of one.
type upstream struct {
	token    string // label of the probe sent to it
	failed   time.Time
	looped   time.Time
	reported bool // the failure is in the log
}

func newForwarder(opts Options, own func() []netip.Addr) *forwarder {
	return &forwarder{opts: opts, own: own, slots: make(chan struct{}, opts.MaxForwards), state: map[netip.AddrPort]*upstream{}}
}

// exchange forwards r and gives the answer with r's id, or one of our own making when there is none.
func (f *forwarder) exchange(ctx context.Context, r *dns.Msg, tcp bool) *dns.Msg {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return failure(r, dns.RcodeServerFailure)
	}
	upstreams := f.order(ctx, time.Now())
	if len(upstreams) == 0 {
		return failure(r, dns.RcodeRefused)
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var last *dns.Msg
	for _, u := range upstreams {
		got, err := f.ask(ctx, u, r, tcp)
		if errors.Is(ctx.Err(), context.Canceled) {
			break // we are being stopped, which is not the upstream's failure
		}
		f.note(u, err)
		if err != nil {
			continue
		}
		if got.Rcode != dns.RcodeServerFailure && got.Rcode != dns.RcodeRefused {
			return got
		}
		last = got // another upstream may know better
	}
	if last != nil {
		return last
	}
	return failure(r, dns.RcodeServerFailure)
}

func failure(r *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg).SetRcode(r, rcode)
	m.RecursionAvailable = true
	return m
}

// ask asks one upstream. Over UDP a truncated answer is handed on as it is: the client then comes over TCP, and so do we.
func (f *forwarder) ask(ctx context.Context, u netip.AddrPort, r *dns.Msg, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Timeout)
	defer cancel()
	network := "udp"
	if tcp {
		network = "tcp"
	}
	// A socket of its own for each question: with the id, that is the entropy a forger has to guess (RFC 5452).
	conn, err := f.opts.Dial(ctx, network, u.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	ask := r.Copy()
	ask.Id = dns.Id()
	client := dns.Client{Net: network, Timeout: f.opts.Timeout, UDPSize: udpSize}
	got, _, err := client.ExchangeWithConnContext(ctx, ask, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	if err != nil {
		return nil, err
	}
	if !got.Response || len(got.Question) != 1 || !sameQuestion(got.Question[0], r.Question[0]) {
		return nil, errors.New("the answer is to another question")
	}
	got.Id = r.Id
	got.Question = slices.Clone(r.Question) // in the client's own spelling
	got.RecursionAvailable = true
	return got, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// order gives the upstreams to ask: those that work first, none that leads back here. Those that are new are probed
// meanwhile, until ctx ends.
func (f *forwarder) order(ctx context.Context, now time.Time) []netip.AddrPort {
	if f.opts.Upstreams == nil {
		return nil
	}
	ours := f.own()
	all := f.opts.Upstreams()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(all)
	var good, bad []netip.AddrPort
	for _, u := range all {
		if slices.Contains(ours, u.Addr()) {
			continue
		}
		st := f.state[u]
		if st == nil || !st.looped.IsZero() && now.Sub(st.looped) >= loopRetry {
			st = &upstream{token: fmt.Sprintf("p%016x", rand.Uint64())}
			f.state[u] = st
			go f.probe(ctx, u, st.token)
		}
		switch {
		case now.Sub(st.looped) < loopRetry:
		case now.Sub(st.failed) < retryAfter:
			bad = append(bad, u)
		default:
			good = append(good, u)
		}
	}
	return append(good, bad...)
}

// forget drops upstreams that are no longer there. mu is held.
func (f *forwarder) forget(all []netip.AddrPort) {
	for u := range f.state {
		if !slices.Contains(all, u) {
			delete(f.state, u)
		}
	}
}

// note remembers how a question to u went, and logs when that changed.
func (f *forwarder) note(u netip.AddrPort, err error) {
	f.mu.Lock()
	st := f.state[u]
	var report bool
	if st != nil {
		report = st.reported != (err != nil)
		st.reported = err != nil
		st.failed = time.Time{}
		if err != nil {
			st.failed = time.Now()
		}
	}
	f.mu.Unlock()
	switch {
	case !report:
	case err != nil:
		f.opts.Logger.Warn("DNS upstream fails", slog.Any("upstream", u), slog.Any("err", err))
	default:
		f.opts.Logger.Info("DNS upstream answers again", slog.Any("upstream", u))
	}
}

// probe asks u once for a name that only leads here when u forwards to us. Otherwise the answer does not matter.
func (f *forwarder) probe(ctx context.Context, u netip.AddrPort, token string) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Timeout)
	defer cancel()
	m := new(dns.Msg)
	m.SetQuestion(token+probeSuffix, dns.TypeHINFO)
	_, _ = f.ask(ctx, u, m, false)
}

// isProbe reports whether name is one of our probes, and if so stops using the upstream it came through.
func (f *forwarder) isProbe(name string) bool {
	token, ok := strings.CutSuffix(dns.CanonicalName(name), probeSuffix)
	if !ok {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for u, st := range f.state {
		if st.token == token {
			st.looped = time.Now()
			f.opts.Logger.Error("DNS upstream forwards back to this server and is not used; name another upstream",
				slog.Any("upstream", u))
			break
		}
	}
	return true
}

// ResolvConf gives the nameservers of a resolv.conf(5), for Options.Upstreams.
func ResolvConf(path string) ([]netip.AddrPort, error) {
	c, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read nameservers: %w", err)
	}
	var out []netip.AddrPort
	for _, s := range c.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("read nameservers of %s: %q is not an IP address", path, s)
		}
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	return out, nil
}
