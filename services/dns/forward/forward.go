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

// forwardTimeout bounds all upstreams together; stub resolvers wait for 5 seconds.
const forwardTimeout = 4500 * time.Millisecond

// UDPSize is the largest UDP answer in bytes that upstreams are asked for: what fits unfragmented through any path
// (DNS flag day 2020).
const UDPSize = 1232

// Options of a Forwarder.
type Options struct {
	// Upstreams gives the servers to ask, best first. Nil or none: questions get REFUSED.
	Upstreams func() []netip.AddrPort
	// Own gives the addresses at which whoever uses the Forwarder answers itself, so that they are no upstreams. Nil:
	// none.
	Own func() []netip.Addr
	// Dial connects to an upstream ("udp" or "tcp"), each time from another port. Nil uses host sockets.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout is how long one upstream may take before the next is asked; 0 is 2 seconds.
	Timeout time.Duration
	// MaxWaiting bounds the questions that are waited for at once. Clients share them: with one more, the client with
	// the most loses its oldest, which gets SERVFAIL. 0 is 1000.
	MaxWaiting int
	// Logger gets a line when an upstream fails or leads back here. Nil discards.
	Logger *slog.Logger
}

// Client is who asks, and by which transport.
type Client struct {
	Addr netip.Addr
	TCP  bool
}

// Forwarder asks upstreams on behalf of clients, who share what may be under way at once. Its methods may be called
// concurrently.
type Forwarder struct {
	opts      Options
	upstreams *upstreams
	counts    counts
	// waiting has one unit for each question that a client waits for. A question that loses its unit is given up.
	waiting *share.Limit[netip.Addr, context.CancelFunc]

	mu      sync.Mutex // guards what follows
	flights map[string]*flight
}

// flight is a question under way, asked once for everybody who asks it at the same time.
type flight struct {
	key    string
	cancel context.CancelFunc
	done   chan struct{}

	waiters int // guarded by Forwarder.mu

	// What came of it, to be read when done is closed: the answer's bytes, or else the code to give.
	answer []byte
	rcode  int
}

// New makes a Forwarder. What it starts ends with the contexts of those who ask.
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
		opts.MaxWaiting = 1000
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{opts: opts, flights: map[string]*flight{}, counts: newCounts()}
	f.upstreams = newUpstreams(opts, f.ask)
	f.waiting = share.New[netip.Addr, context.CancelFunc](share.Options[netip.Addr]{Total: opts.MaxWaiting})
	return f
}

// IsProbe reports whether a name is one that the Forwarder made up to find out whether an upstream forwards back to
// it. If so, that upstream is left alone.
func (f *Forwarder) IsProbe(name string) bool { return f.upstreams.isProbe(name) }

// Exchange forwards r and gives the answer with r's id, or one of its own making when there is none. ctx is the life
// of whoever uses the Forwarder: what is learned of upstreams meanwhile goes on until it ends.
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

// join gives the flight of a question, which begins unless it is under way. What it learns of upstreams it goes on to
// learn until life ends. Every join has its leave.
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

// leave gives up waiting for a flight. With the last who does it is over.
func (f *Forwarder) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		fl.cancel()
		f.forget(fl)
	}
}

// forget has the next who asks begin anew. mu is held.
func (f *Forwarder) forget(fl *flight) {
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
}

// fly asks one upstream after the other.
func (f *Forwarder) fly(ctx, life context.Context, fl *flight, w way) {
	defer fl.cancel()
	fl.answer, fl.rcode = f.askAll(ctx, life, w)
	f.mu.Lock()
	f.forget(fl)
	f.mu.Unlock()
	close(fl.done)
}

// askAll gives the first answer that is of use. Without any answer it gives the code to tell the client.
func (f *Forwarder) askAll(ctx, life context.Context, w way) (answer []byte, rcode int) {
	rcode = dns.RcodeRefused // nobody to ask
	for _, u := range f.upstreams.order(life, time.Now()) {
		rcode = dns.RcodeServerFailure
		began := time.Now()
		// A name that nobody answers for is no reason to think ill of an upstream; only its silence to everybody is.
		doubt := time.AfterFunc(f.opts.Timeout/4, func() { f.upstreams.doubt(life, u, began) })
		got, err := f.ask(ctx, u, w)
		doubt.Stop()
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return nil, rcode // nobody waits any more, which is not the upstream's failure
		case err != nil:
			f.upstreams.doubt(life, u, began)
			continue
		}
		answer = got
		if r := rcodeOf(got); r != dns.RcodeServerFailure && r != dns.RcodeRefused {
			break
		}
		// Another upstream may know better.
	}
	return answer, rcode
}
