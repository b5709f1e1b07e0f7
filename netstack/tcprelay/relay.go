package tcprelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// Options of a Relay. Pace alone is not required.
type Options struct {
	// Poller watches the host sockets.
	Poller *poll.Poller
	// Send carries an IP packet, a superframe maybe, to the pod it is for. ip is borrowed. It must not come back with an
	// answer in the same goroutine.
	Send func(ip []byte, vnet packet.VNetHdr)
	// MTU is the pods'.
	MTU func() int
	// Refuse tells the sender of p, a SYN, that it cannot reach whom it calls, and why. p is borrowed. As Send, it must
	// not come back with an answer in the same goroutine.
	Refuse func(p *packet.Packet, why packet.ICMPError)
	// MaxConns bounds the connections, each of which has a descriptor; 0 is 4,096.
	MaxConns int
	// MaxBytes bounds what is kept of streams that their receivers do not take, in bytes; 0 is 128 MiB.
	MaxBytes int
	// Pace tells whether what a pod is sent is limited, and how long to wait before it is sent more. Nil: no pod is.
	Pace func(pod packet.Addr) (limited bool, wait time.Duration)
}

const (
	// maxOpening bounds the connections that are not open yet. Beyond it, SYNs are dropped and tried again by the pod.
	maxOpening = 4096

	defaultConns = 4096
	defaultBytes = 128 << 20
	// Ports that Join takes when the client's own is in use already: not those that the stack takes.
	FirstPort, LastPort = 49152, 65535
)

// Relay holds the connections of a node. Its methods are safe for concurrent use.
type Relay struct {
	o      Options
	start  time.Time // times are counted from it
	secret uint64    // of the sequence numbers that connections begin with
	bounds bounds
	shards [64]shard
	closed atomic.Bool
}

// shard is a part of the connections, by the tuple of the pod's segments.
type shard struct {
	mu    sync.RWMutex
	conns map[packet.Tuple]*conn
}

// New makes a Relay.
func New(o Options) *Relay {
	r := &Relay{o: o, start: time.Now(), secret: rand.Uint64(), bounds: newBounds(cmp.Or(o.MaxConns, defaultConns), cmp.Or(o.MaxBytes, defaultBytes))}
	for i := range r.shards {
		r.shards[i].conns = map[packet.Tuple]*conn{}
	}
	return r
}

func (r *Relay) shard(t *packet.Tuple) *shard { return &r.shards[t.Hash(0)%uint64(len(r.shards))] }

func (r *Relay) find(t *packet.Tuple) *conn {
	s := r.shard(t)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.conns[*t]
}

// add enters c unless its tuple is taken or the Relay closed.
func (r *Relay) add(c *conn) bool {
	s := r.shard(&c.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[c.key] != nil || r.closed.Load() {
		return false
	}
	s.conns[c.key] = c
	return true
}

func (r *Relay) remove(c *conn) {
	s := r.shard(&c.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[c.key] == c {
		delete(s.conns, c.key)
	}
}

// Deliver takes a pod's TCP segment, contiguous and with a checksum known to be right. It is borrowed. It reports
// whether the segment was one of the Relay's connections or, if it may, began one. The caller ends turn when it has no
// more frames at hand.
func (r *Relay) Deliver(p *packet.Packet, turn *Turn, mayBegin bool) bool {
	c := r.find(&p.Tuple)
	if c != nil && c.receive(p, turn) {
		return true
	}
	if !mayBegin || p.TCPFlags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) != packet.SYN {
		return false
	}
	if c != nil {
		r.remove(c) // it has ended, and is about to do so itself
	}
	r.open(p)
	return true
}

// open begins the connection that a pod's SYN asks for.
func (r *Relay) open(p *packet.Packet) {
	a := r.bounds.begin(p.Tuple.Src)
	if a == nil {
		return
	}
	c := newConn(r, p.Tuple, connecting)
	c.account = a
	h := p.IP[p.L4:p.Payload]
	c.accept(readOffer(h[20:], p.Tuple.Src.Is4()), be.Uint32(h[4:]))
	if !r.add(c) {
		a.end(false)
		return
	}
	fd, err := connect(packet.Endpoint{Addr: p.Tuple.Dst, Port: p.Tuple.DstPort})
	c.begin(fd, err, poll.Out)
}

// Join gives client, whose descriptor it takes over, a connection to a pod, as from, and carries it until it ended or
// ctx did; then it returns nil. Before the client is taken over, it returns an error: one that wraps ErrInUse when from
// is the address of another connection to the pod (a port of 0 stands for any), or ErrTooMany.
func (r *Relay) Join(ctx context.Context, client *net.TCPConn, from, to netip.AddrPort) error {
	pod, seen := endpoint(to), endpoint(from)
	c := newConn(r, packet.Tuple{Src: pod.Addr, SrcPort: pod.Port, Dst: seen.Addr, DstPort: seen.Port, Proto: packet.TCP}, greeting)
	if c.account = r.bounds.begin(Network(seen.Addr)); c.account == nil {
		return fmt.Errorf("join a client to %s: %w", to, ErrTooMany)
	}
	if !r.reserve(c) {
		c.account.end(false)
		return fmt.Errorf("join a client to %s as %s: %w", to, from, ErrInUse)
	}
	fd, err := detach(client)
	c.begin(fd, err, 0)
	if err != nil {
		return fmt.Errorf("join a client to %s: %w", to, err)
	}
	stop := context.AfterFunc(ctx, func() { c.kill(aborted) })
	defer stop()
	<-c.ended
	return nil
}

var (
	// ErrInUse says that an address and port has a connection already.
	ErrInUse error = syscall.EADDRINUSE
	// ErrTooMany says that the client's network has as many connections as it may have, or as many that are not open yet.
	ErrTooMany = errors.New("the client has too many connections")
)

// Network is who a client is: an IPv4 address, or the 64 bits of an IPv6 address that one subscriber has at least.
func Network(a packet.Addr) packet.Addr {
	if !a.Is4() {
		clear(a[8:])
	}
	return a
}

// reserve enters c, with a port of ours where it has none.
func (r *Relay) reserve(c *conn) bool {
	if c.key.DstPort != 0 {
		return r.add(c)
	}
	for range 64 {
		c.key.DstPort = uint16(FirstPort + rand.IntN(LastPort-FirstPort+1))
		c.back = c.key.Reverse()
		if r.add(c) {
			return true
		}
	}
	return false
}

// Forget resets the connections of a pod that is gone, on the host's side.
func (r *Relay) Forget(pod netip.Addr) {
	a := packet.AddrFrom(pod)
	r.each(func(c *conn) {
		if c.key.Src == a {
			c.kill(podGone)
		}
	})
}

// Close resets every connection, on both sides, takes no more, and waits until all are gone.
func (r *Relay) Close() error {
	if r.closed.Swap(true) {
		return os.ErrClosed
	}
	r.each(func(c *conn) { c.kill(aborted) })
	r.each(func(c *conn) { <-c.ended })
	return nil
}

// each calls f for every connection, without holding locks.
func (r *Relay) each(f func(*conn)) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.RLock()
		conns := make([]*conn, 0, len(s.conns))
		for _, c := range s.conns {
			conns = append(conns, c)
		}
		s.mu.RUnlock()
		for _, c := range conns {
			f(c)
		}
	}
}

// Stats tells the state and the counters.
func (r *Relay) Stats() Stats { return r.bounds.stats() }

// Len is how many connections there are.
func (r *Relay) Len() (n int) {
	r.each(func(*conn) { n++ })
	return n
}

// isn is where a connection's numbers begin (RFC 6528): the same addresses and ports later begin later, so that a pod
// in TIME_WAIT takes the SYN for a new one. The clock ticks every 64 ns, as Linux' does.
func (r *Relay) isn(t *packet.Tuple) uint32 {
	return uint32(t.Hash(r.secret)) + uint32(time.Now().UnixNano()>>6)
}

func (r *Relay) now() time.Duration { return time.Since(r.start) }
