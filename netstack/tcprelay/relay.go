package tcprelay

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// Options of a Relay. Poller, Send, MTU and Refuse are required.
type Options struct {
	// Poller watches the host sockets.
	Poller *poll.Poller
	// Send sends an IP packet, which may be a superframe, to the pod that it is addressed to. It must not keep ip. It
	// must not call the Relay with an answer in the same goroutine.
	Send func(ip []byte, vnet packet.VNetHdr)
	// MTU returns the MTU of the pods, in bytes.
	MTU func() int
	// Refuse tells the sender of p, a SYN, that its destination cannot be reached, and why. by is the router or host
	// outside that says so; the zero address stands for none. Refuse must not keep p. Like Send, it must not call the
	// Relay with an answer in the same goroutine.
	Refuse func(p *packet.Packet, why packet.ICMPError, by packet.Addr)
	// MaxConns bounds the number of connections, each of which has a descriptor; 0 means 4,096.
	MaxConns int
	// Owner returns the owner that is charged for the connections of a pod's address. If it is nil, each address is its
	// own owner. Connections of clients are charged by Network.
	Owner func(packet.Addr) packet.Addr
	// MaxBytes bounds the memory for data that receivers do not accept yet, in bytes; 0 means 128 MiB.
	MaxBytes int
	// Pace returns whether the rate at which a pod is sent data is limited, and how long to wait before it is sent
	// more. If Pace is nil, no pod is limited.
	Pace func(pod packet.Addr) (limited bool, wait time.Duration)
	// Far returns the length in bytes of the largest IP packet that fits on the way to a pod of another node, and false
	// for a pod of this node, and for what is no pod. If it is nil, all pods are of this node.
	Far func(pod packet.Addr) (mtu int, ok bool)
	// Asks reports whether a server of the host itself may ask who is behind connections to an address and port
	// (Behind), now or later. If it is nil, none does.
	Asks func(packet.Endpoint) bool
	// Taken reports whether somebody else has a connection whose segments from the pod have this tuple, or is about to.
	// Join asks when its own is known (Carries), so that of two who begin at once one sees the other. nil: nobody else.
	Taken func(*packet.Tuple) bool
	// Hold lets connections outlive the Relay. If it is nil, they end with it.
	Hold *Hold
}

const (
	// maxOpening bounds the number of connections that are not open yet. Beyond it SYNs are dropped, and the pod
	// repeats them.
	maxOpening = 4096

	defaultConns = 4096
	defaultBytes = 128 << 20
	// FirstPort and LastPort bound the ports that Join uses when the client's own port is in use already. The stack
	// uses others.
	FirstPort, LastPort = 49152, 65535
)

// Relay holds the connections of a node. Its methods are safe for concurrent use.
type Relay struct {
	o      Options
	start  time.Time // times of connections are counted from here
	secret uint64    // of the initial sequence numbers
	bounds bounds
	behind behind
	shards [64]shard
	hold   *holder // nil: no connection outlives the Relay
	closed atomic.Bool
	noPort atomic.Uint64
	// resuming is true from New to the end of Resume, if there is anything to resume.
	resuming atomic.Bool
}

// shard holds those connections whose tuples, of the pod's segments, have one hash.
type shard struct {
	mu    sync.RWMutex
	conns map[packet.Tuple]*conn
}

// New makes a Relay.
func New(o Options) *Relay {
	if o.Owner == nil {
		o.Owner = func(a packet.Addr) packet.Addr { return a }
	}
	if o.Taken == nil {
		o.Taken = func(*packet.Tuple) bool { return false }
	}
	if o.Asks == nil {
		o.Asks = func(packet.Endpoint) bool { return false }
	}
	if o.Far == nil {
		o.Far = func(packet.Addr) (int, bool) { return 0, false }
	}
	r := &Relay{o: o, start: time.Now(), secret: rand.Uint64(), bounds: newBounds(cmp.Or(o.MaxConns, defaultConns), cmp.Or(o.MaxBytes, defaultBytes))}
	if o.Hold != nil {
		r.hold = newHolder(*o.Hold)
		r.resuming.Store(len(o.Hold.Found) > 0)
	}
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

// add enters c unless its tuple is in use or the Relay is closed.
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

// Deliver handles a TCP segment of a pod. The segment is contiguous and its checksum is known to be right. Deliver does
// not keep p, but turn may take over its buffer and give it another. Deliver reports whether the segment belongs to one
// of the Relay's connections, or has begun one, which it does only if mayBegin is set. While there is something to
// Resume, it drops segments of connections that are not known yet, and says that they belong to one: somebody else
// would reset them. The pod repeats them. The caller ends turn when it has no more frames at hand.
func (r *Relay) Deliver(p *packet.Packet, turn *Turn, mayBegin bool) bool {
	resuming := r.resuming.Load() // before find: what Resume enters last is found when this is false
	c := r.find(&p.Tuple)
	if c != nil && c.receive(p, turn) {
		return true
	}
	opens := packet.Opens(p.TCPFlags)
	if resuming && (mayBegin || !opens) {
		return true
	}
	if !mayBegin || !opens {
		return false
	}
	if c != nil {
		r.remove(c) // c has ended, and has not removed itself yet
	}
	r.open(p)
	return true
}

// open begins the connection that a pod's SYN asks for. If the pod may have no more connections, it drops the SYN.
func (r *Relay) open(p *packet.Packet) {
	a := r.bounds.begin(r.o.Owner(p.Tuple.Src))
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
	c.head = headOf(p)
	fd, err := c.connect()
	c.begin(fd, err, poll.Out, Told{})
}

// Network returns the network that a client's connections are charged to: an IPv4 address itself, or the first 64 bits
// of an IPv6 address, since each subscriber has at least those.
func Network(a packet.Addr) packet.Addr {
	if !a.Is4() {
		clear(a[8:])
	}
	return a
}

// Forget resets the host's side of all connections of a pod that was removed.
func (r *Relay) Forget(pod netip.Addr) {
	a := packet.AddrFrom(pod)
	r.each(func(c *conn) {
		if c.key.Src == a {
			c.kill(podGone)
		}
	})
}

// Close leaves every connection that is held to the next Relay, resets the others on both sides, and waits until all
// have ended here. It accepts no new ones. What pods still send in connections that are left is ignored.
func (r *Relay) Close() error {
	if r.closed.Swap(true) {
		return os.ErrClosed
	}
	if r.hold != nil {
		r.hold.retry()
		r.hold.settle()
	}
	r.each(func(c *conn) { c.kill(leaving) })
	r.each(func(c *conn) { <-c.ended })
	if r.hold != nil {
		r.hold.settle() // some may have ended while they were being kept
	}
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

// KeepAgain has all sockets held once more, by somebody new.
func (r *Relay) KeepAgain() {
	r.each(func(c *conn) {
		c.mu.Lock()
		has := c.slot != noSlot
		c.mu.Unlock()
		if has {
			r.hold.again(c)
		}
	})
}

// Stats returns the current use and the counters.
func (r *Relay) Stats() Stats {
	s := r.bounds.stats()
	s.NoPort = r.noPort.Load()
	if r.hold != nil {
		s.Held = r.hold.count()
	}
	return s
}

// Len returns the number of connections.
func (r *Relay) Len() (n int) {
	r.each(func(*conn) { n++ })
	return n
}

// isn returns the initial sequence number of a connection (RFC 6528). For the same addresses and ports it grows with
// time, so that a pod in TIME_WAIT accepts the SYN for a new connection. The clock ticks every 64 ns, as in Linux.
func (r *Relay) isn(t *packet.Tuple) uint32 {
	return uint32(t.Hash(r.secret)) + uint32(time.Now().UnixNano()>>6)
}

func (r *Relay) now() time.Duration { return time.Since(r.start) }
