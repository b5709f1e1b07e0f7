package pingrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/share"
)

// Options are what a Relay needs.
type Options struct {
	// Poller watches the sockets. It must outlive the Relay.
	Poller *poll.Poller
	// Send carries an IP packet for a pod through the pipeline. It is borrowed.
	Send func(ip []byte, vnet packet.VNetHdr)
	// Refuse tells the sender of p, an echo request like one that was sent before, that it is not answered, and why. by
	// is who says so, a router or a host outside, or zero. p is borrowed.
	Refuse func(p *packet.Packet, why packet.ICMPError, by packet.Addr)
	// MTU is the pods' MTU in bytes, now.
	MTU func() int
	// Idle is how long an idle socket is kept; 0 is 30 s.
	Idle time.Duration
	// Max bounds the sockets; 0 is 1,024.
	Max int
	// Owner says who is charged for what an address sends; nil: each address by itself.
	Owner func(packet.Addr) packet.Addr
}

// Errors of Send. Others say why a socket could not be had, or why the host would not send.
var (
	// ErrTooBig: the echo may not be fragmented, and the way is narrower.
	ErrTooBig = errors.New("the echo does not fit the path")
	// ErrTooMany: all sockets are others', and no pod has two.
	ErrTooMany = errors.New("there are too many pings")
)

// Relay has the sockets. Its methods are safe for concurrent use.
type Relay struct {
	o     Options
	start time.Time
	now   atomic.Int64 // since start, as of the last Sweep
	id    atomic.Uint32
	share *share.Limit[packet.Addr, *pinger]

	mu     sync.Mutex // guards below
	known  map[key]*pinger
	closed bool
}

// key is whose echoes a socket carries: the request's source, destination and identifier.
type key struct {
	pod, to packet.Addr
	id      uint16
}

// New makes a Relay without sockets. Somebody must call Run, or Sweep from time to time.
func New(o Options) *Relay {
	if o.Owner == nil {
		o.Owner = func(a packet.Addr) packet.Addr { return a }
	}
	o.Idle, o.Max = cmp.Or(o.Idle, 30*time.Second), cmp.Or(o.Max, 1024)
	return &Relay{
		o: o, start: time.Now(), known: map[key]*pinger{},
		share: share.New[packet.Addr, *pinger](share.Options[packet.Addr]{Total: o.Max}),
	}
}

// Send sends a pod's echo request, whole and with a right checksum. It is borrowed. With ErrTooBig comes the largest IP
// packet, in bytes, that fits.
func (r *Relay) Send(p *packet.Packet) (mtu int, err error) {
	s, err := r.pinger(key{p.Tuple.Src, p.Tuple.Dst, p.Tuple.SrcPort})
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", p.Tuple.Dst, err)
	}
	defer s.release()
	return s.send(p)
}

// pinger finds the socket of k, or opens one, and gives it acquired.
func (r *Relay) pinger(k key) (*pinger, error) {
	if s, err := r.find(k); s != nil || err != nil {
		return s, err
	}
	s := newPinger(r, k)
	lost, ok := r.share.Acquire(&s.claim, r.o.Owner(k.pod))
	if lost != nil {
		r.end(lost.Value)
	}
	if !ok {
		return nil, ErrTooMany
	}
	if err := s.open(); err != nil {
		r.share.Release(&s.claim)
		return nil, err
	}
	r.mu.Lock()
	other := r.known[k]
	good := other == nil && !r.closed && !s.gone
	if good {
		r.known[k] = s
		s.users.Add(1)
	} else if other != nil {
		other.users.Add(1)
	}
	r.mu.Unlock()
	if good {
		return s, nil
	}
	r.share.Release(&s.claim)
	s.release()
	if other == nil {
		return nil, ErrTooMany
	}
	return other, nil
}

func (r *Relay) find(k key) (*pinger, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, net.ErrClosed
	}
	s := r.known[k]
	if s != nil {
		s.users.Add(1) // one that ends leaves known first
	}
	return s, nil
}

// end ends s, once. Who uses it at this moment may finish.
func (r *Relay) end(s *pinger) {
	r.mu.Lock()
	there := r.known[s.key] == s
	if there {
		delete(r.known, s.key)
	}
	s.gone = true
	r.mu.Unlock()
	if there {
		r.share.Release(&s.claim)
		s.release()
	}
}

// endAll ends those sockets of which f is true.
func (r *Relay) endAll(f func(*pinger) bool) {
	r.mu.Lock()
	var gone []*pinger
	for _, s := range r.known {
		if f(s) {
			gone = append(gone, s)
		}
	}
	r.mu.Unlock()
	for _, s := range gone {
		r.end(s)
	}
}

// Forget ends the sockets of a pod that is gone.
func (r *Relay) Forget(pod netip.Addr) {
	a := packet.AddrFrom(pod)
	r.endAll(func(s *pinger) bool { return s.key.pod == a })
}

// Sweep sets the Relay's clock and ends the sockets that have been idle for too long.
func (r *Relay) Sweep(now time.Time) {
	t := now.Sub(r.start)
	r.now.Store(int64(t))
	r.endAll(func(s *pinger) bool { return t-time.Duration(s.used.Load()) > r.o.Idle })
}

// Run sweeps every second until ctx ends.
func (r *Relay) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.Sweep(now)
		}
	}
}

// Stats tells who has how many sockets.
func (r *Relay) Stats() share.Stats { return r.share.Stats() }

// Close ends all sockets and lets none begin.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.endAll(func(*pinger) bool { return true })
}
