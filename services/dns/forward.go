package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/share"
)

// forwardTimeout bounds all upstreams together; stub resolvers wait for 5 seconds.
const forwardTimeout = 4500 * time.Millisecond

// asker is who asks, and by which transport.
type asker struct {
	addr netip.Addr
	tcp  bool
}

// forwarder asks upstreams on behalf of clients, who share what may be under way at once.
type forwarder struct {
	opts      Options
	upstreams *upstreams
	counts    forwardCounts
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

	waiters int // guarded by forwarder.mu

	// What came of it, to be read when done is closed: the answer's bytes, or else the code to give.
	answer []byte
	rcode  int
}

func newForwarder(opts Options, own func() []netip.Addr) *forwarder {
	f := &forwarder{opts: opts, flights: map[string]*flight{}, counts: newForwardCounts()}
	f.upstreams = newUpstreams(opts, own, f.ask)
	f.waiting = share.New[netip.Addr, context.CancelFunc](share.Options[netip.Addr]{Total: opts.MaxForwards})
	return f
}

// exchange forwards r and gives the answer with r's id, or one of our own making when there is none.
func (f *forwarder) exchange(ctx context.Context, from asker, r *dns.Msg) *dns.Msg {
	waiting, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	claim := &share.Claim[netip.Addr, context.CancelFunc]{Value: cancel}
	lost, ok := f.waiting.Acquire(claim, from.addr)
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
	fl := f.join(ctx, q, from.tcp)
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
func (f *forwarder) join(life context.Context, q *question, tcp bool) *flight {
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
func (f *forwarder) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		fl.cancel()
		f.forget(fl)
	}
}

// forget has the next who asks begin anew. mu is held.
func (f *forwarder) forget(fl *flight) {
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
}

// fly asks one upstream after the other.
func (f *forwarder) fly(ctx, life context.Context, fl *flight, w way) {
	defer fl.cancel()
	fl.answer, fl.rcode = f.askAll(ctx, life, w)
	f.mu.Lock()
	f.forget(fl)
	f.mu.Unlock()
	close(fl.done)
}

// askAll gives the first answer that is of use. Without any answer it gives the code to tell the client.
func (f *forwarder) askAll(ctx, life context.Context, w way) (answer []byte, rcode int) {
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
