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

// Options of a Relay. Poller, Send, Refuse and MTU are required.
type Options struct {
	// Poller watches the sockets. It must outlive the Relay.
	Poller *poll.Poller
	// Send sends an IP packet through the pipeline to a pod. It must not keep ip.
	Send func(ip []byte, vnet packet.VNetHdr)
	// Refuse tells the sender of p, an echo request like one that was sent before, that it is not answered, and why. by
	// is the router or host outside that says so; the zero address stands for none. Refuse must not keep p.
	Refuse func(p *packet.Packet, why packet.ICMPError, by packet.Addr)
	// MTU returns the present MTU of the pods, in bytes.
	MTU func() int
	// Idle is how long an idle socket is kept; 0 means 30 s.
	Idle time.Duration
	// Max bounds the number of sockets; 0 means 1,024.
	Max int
	// Owner returns the owner that is charged for what an address sends. If it is nil, each address is its own owner.
	Owner func(packet.Addr) packet.Addr
}

// Errors of Send. Other errors say why a socket could not be opened, or why the host did not send.
var (
	// ErrTooBig says that the request must not be fragmented and does not fit the path.
	ErrTooBig = errors.New("the echo does not fit the path")
	// ErrTooMany says that other owners have all sockets, and none of them has two.
	ErrTooMany = errors.New("there are too many pings")
)

// Relay holds the sockets. Its methods are safe for concurrent use.
type Relay struct {
	o     Options
	start time.Time
	now   atomic.Int64  // since start, as of the last Sweep
	id    atomic.Uint32 // the identification of the last reply that was cut
	share *share.Limit[packet.Addr, *pinger]

	mu     sync.Mutex // guards what follows
	known  map[key]*pinger
	closed bool
}

// key identifies the echoes that a socket carries, by the request's source, destination and identifier.
type key struct {
	pod, to packet.Addr
	id      uint16
}

// New makes a Relay without sockets. The caller must call Run, or Sweep from time to time.
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

// Send sends a pod's echo request, which is unfragmented and has a right checksum. It does not keep p. mtu is set with
// ErrTooBig only: it is the size of the largest IP packet that fits, in bytes.
func (r *Relay) Send(p *packet.Packet) (mtu int, err error) {
	s, err := r.pinger(key{p.Tuple.Src, p.Tuple.Dst, p.Tuple.SrcPort})
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", p.Tuple.Dst, err)
	}
	defer s.release()
	return s.send(p)
}

// pinger returns the socket of k, acquired, and opens it if there is none.
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
		s.users.Add(1) // s is in use: a socket that ends is removed from known first
	}
	return s, nil
}

// end ends s, once. A goroutine that is using s may finish.
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

// endAll ends the sockets for which f returns true.
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

// Forget ends the sockets of a pod that was removed.
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

// Stats returns how the sockets are shared.
func (r *Relay) Stats() share.Stats { return r.share.Stats() }

// Close ends all sockets. No new one can be opened.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.endAll(func(*pinger) bool { return true })
}
