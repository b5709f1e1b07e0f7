package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/share"
)

// forwardTimeout limits the time for all upstreams together. Stub resolvers wait for 5 seconds.
const forwardTimeout = 4500 * time.Millisecond

// UDPSize is the size in bytes of the largest UDP answer that upstreams are asked to send. This size passes any path
// without fragmentation (DNS flag day 2020).
const UDPSize = 1232

// MaxWaiting is the default of Options.MaxWaiting.
const MaxWaiting = 1000

// Options are the settings of a Forwarder.
type Options struct {
	// Upstreams returns the servers to ask, best first. If it is nil or returns none, questions get REFUSED.
	Upstreams func() []netip.AddrPort
	// Own returns the addresses at which the caller itself answers; they are not used as upstreams. Nil means none.
	Own func() []netip.Addr
	// Dial connects to an upstream ("udp" or "tcp"), each time from a new port. Nil uses host sockets.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout is how long one upstream may take before the next is asked; 0 means 2 seconds.
	Timeout time.Duration
	// MaxWaiting limits the questions that clients wait for at the same time. Clients share this limit. When it is
	// exceeded, the client with the most questions loses its oldest, which gets SERVFAIL. 0 means MaxWaiting.
	MaxWaiting int
	// LowerCase asks for names in lower case. Without it, the spelling is random, so that a forger has to guess it.
	LowerCase bool
	// Logger is told when an upstream fails or forwards back to this server. Nil discards messages.
	Logger *slog.Logger
}

// Client says who asks, and over which transport.
type Client struct {
	Addr netip.Addr
	TCP  bool
	// Waits is called before an answer is waited for. Nil: nobody wants to know.
	Waits func()
}

// Forwarder asks upstreams on behalf of clients. Clients share the limit of questions under way. Its methods may be
// called concurrently.
type Forwarder struct {
	opts      Options
	upstreams *upstreams
	counts    counts
	// waiting has one unit for each question that a client waits for. A question that loses its unit is given up.
	waiting *share.Limit[netip.Addr, context.CancelFunc]

	mu      sync.Mutex // guards what follows
	flights map[string]*flight
}

// flight is a question under way. It is asked once for all clients that wait for it.
type flight struct {
	key    string
	cancel context.CancelFunc
	done   chan struct{}

	waiters int // guarded by Forwarder.mu

	// The result, to be read after done is closed: the bytes of the answer, or the code for clients if there is none.
	answer []byte
	rcode  int
}

// New returns a Forwarder. The goroutines that it starts end with the contexts passed to Exchange.
func New(opts Options) *Forwarder {
	if opts.Own == nil {
		opts.Own = func() []netip.Addr { return nil }
	}
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	if opts.Timeout == 0 {
		opts.Timeout = 2 * time.Second
	}
	if opts.MaxWaiting == 0 {
		opts.MaxWaiting = MaxWaiting
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{opts: opts, flights: map[string]*flight{}, counts: newCounts()}
	f.upstreams = newUpstreams(opts, f.ask)
	f.waiting = share.New[netip.Addr, context.CancelFunc](share.Options[netip.Addr]{Total: opts.MaxWaiting})
	return f
}

// IsProbe reports whether the Forwarder made up the name to find out whether an upstream forwards back to it. If so,
// IsProbe stops the use of that upstream.
func (f *Forwarder) IsProbe(name string) bool { return f.upstreams.isProbe(name) }

// Exchange forwards r and returns the answer, with r's id. If there is no answer, it returns a message with an error
// code. Probes of upstreams that Exchange starts go on after it returns, until ctx ends; so ctx should live as long as
// the caller's server.
func (f *Forwarder) Exchange(ctx context.Context, from Client, r *dns.Msg) *dns.Msg {
	waiting, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	claim := &share.Claim[netip.Addr, context.CancelFunc]{Value: cancel}
	lost, ok := f.waiting.Acquire(claim, from.Addr)
	if lost != nil {
		lost.Value()
	}
	if !ok {
		return failure(r, dns.RcodeServerFailure)
	}
	defer f.waiting.Release(claim)

	q, err := newQuestion(r)
	if err != nil {
		return failure(r, dns.RcodeFormatError)
	}
	fl := f.join(ctx, q, from.TCP)
	defer f.leave(fl)
	if from.Waits != nil {
		from.Waits()
	}
	select {
	case <-fl.done:
	case <-waiting.Done():
		return failure(r, dns.RcodeServerFailure)
	}
	if fl.answer == nil {
		return failure(r, fl.rcode)
	}
	m, err := answerTo(r, fl.answer)
	if err != nil {
		return failure(r, dns.RcodeServerFailure)
	}
	return m
}

func failure(r *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg).SetRcode(r, rcode)
	m.RecursionAvailable = true
	return m
}

// join returns the flight of a question, and starts it if it is not under way. Probes of upstreams that the flight
// starts go on until life ends. The caller must call leave once.
func (f *Forwarder) join(life context.Context, q *question, tcp bool) *flight {
	key := q.key(tcp)
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[key]; fl != nil {
		fl.waiters++
		f.counts.shared.Add(1)
		return fl
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(life), forwardTimeout)
	fl := &flight{key: key, cancel: cancel, done: make(chan struct{}), waiters: 1}
	f.flights[key] = fl
	go f.fly(ctx, life, fl, way{q, tcp})
	return fl
}

// leave stops waiting for a flight. When nobody waits any more, the flight is cancelled.
func (f *Forwarder) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		fl.cancel()
		f.forget(fl)
	}
}

// forget removes a flight, so that the next client with this question starts a new one. The caller holds mu.
func (f *Forwarder) forget(fl *flight) {
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
}

// fly asks the upstreams one after the other.
func (f *Forwarder) fly(ctx, life context.Context, fl *flight, w way) {
	defer fl.cancel()
	fl.answer, fl.rcode = f.askAll(ctx, life, w)
	f.mu.Lock()
	f.forget(fl)
	f.mu.Unlock()
	close(fl.done)
}

// askAll returns the first useful answer, or else the last one. If there is no answer, it returns the code for
// clients.
func (f *Forwarder) askAll(ctx, life context.Context, w way) (answer []byte, rcode int) {
	rcode = dns.RcodeRefused // if there is no upstream
	for _, u := range f.upstreams.order(life, time.Now()) {
		rcode = dns.RcodeServerFailure
		began := time.Now()
		// An upstream may leave one question unanswered. It is probed only if it answers nobody for a while.
		doubt := time.AfterFunc(f.opts.Timeout/4, func() { f.upstreams.doubt(life, u, began) })
		got, err := f.ask(ctx, u, w)
		doubt.Stop()
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return nil, rcode // nobody waits any more; the upstream has not failed
		case err != nil:
			f.upstreams.doubt(life, u, began)
			continue
		}
		answer = got
		if r := rcodeOf(got); r == dns.RcodeSuccess || r == dns.RcodeNameError {
			break
		}
		// Another upstream may have a better answer.
	}
	return answer, rcode
}
