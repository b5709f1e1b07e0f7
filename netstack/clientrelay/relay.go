package clientrelay

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/superframe"
)

// Options of a Relay. All are required.
type Options struct {
	// Poller watches the Doors. The caller closes it after them.
	Poller *poll.Poller
	// Send sends an IP packet, which may be a superframe, through the pipeline to a backend, with its virtio-net
	// header. It must not keep ip, and must not call the Relay with an answer in the same goroutine.
	Send func(ip []byte, vnet packet.VNetHdr)
	// MTU returns the present MTU of the pods, in bytes.
	MTU func() int
	// ClientFor returns the address that the backend at to sees of a client: the client's, or one of this node if it is
	// invalid. An error says that the backend cannot be reached from there.
	ClientFor func(client, to netip.AddrPort) (netip.AddrPort, error)
}

// FirstPort and LastPort bound the ports that an Exchange uses when the client's own port is in use already. The stack
// uses others.
const FirstPort, LastPort = 49152, 65535

// Relay holds the Exchanges of a node. Its methods are safe for concurrent use.
type Relay struct {
	o        Options
	out      superframe.Out
	batches  superframe.Pool
	segments sync.Pool     // of *[]byte: one segment of a superframe
	lost     atomic.Uint64 // messages for clients that the host's kernel did not take
	count    atomic.Int64  // of Exchanges
	shards   [64]shard
}

// shard holds those Exchanges whose tuples, of the backends' packets, have one hash.
type shard struct {
	mu        sync.RWMutex
	exchanges map[packet.Tuple]*Exchange
}

// New makes a Relay.
func New(o Options) *Relay {
	r := &Relay{o: o}
	r.out.Send = o.Send
	for i := range r.shards {
		r.shards[i].exchanges = map[packet.Tuple]*Exchange{}
	}
	return r
}

// Lost returns how many messages for clients, of one datagram or several, did not leave, as the host's socket had no
// room for them or the host no way.
func (r *Relay) Lost() uint64 { return r.lost.Load() }

func (r *Relay) shard(t *packet.Tuple) *shard { return &r.shards[t.Hash(0)%uint64(len(r.shards))] }

func (r *Relay) find(t *packet.Tuple) *Exchange {
	s := r.shard(t)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.exchanges[*t]
}

// add enters x unless its tuple is in use.
func (r *Relay) add(x *Exchange) bool {
	s := r.shard(&x.answers)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exchanges[x.answers] != nil {
		return false
	}
	s.exchanges[x.answers] = x
	r.count.Add(1)
	return true
}

// Deliver handles a packet that the pipeline brings to this node's stack, and reports whether it belongs to an
// Exchange: a datagram, or an ICMP error about one. It is unfragmented and its checksum is known to be right. Deliver
// does not keep p.
func (r *Relay) Deliver(p *packet.Packet) bool {
	if r.count.Load() == 0 {
		return false
	}
	switch p.Tuple.Proto {
	case packet.UDP:
		x := r.find(&p.Tuple)
		if x != nil {
			x.answer(p)
		}
		return x != nil
	case packet.ICMPv4, packet.ICMPv6:
		var quoted packet.Packet
		if !p.Embedded(&quoted) {
			return false
		}
		t := quoted.Tuple.Reverse()
		x := r.find(&t)
		if x != nil {
			x.fault(p)
		}
		return x != nil
	}
	return false
}

// Exchange is what one client says to a backend, and hears from it. Close ends it.
type Exchange struct {
	door    *Door
	answers packet.Tuple // of the backend's packets
	head    superframe.Header
	to      dgram.Addr  // the client
	from    packet.Addr // the address that answers it; zero: the kernel chooses
	heard   func(error)
	narrow  atomic.Uint32 // the MTU of the way to the backend, if that is known to be less than the pods'; or 0
	over    atomic.Bool
}

var _ io.Closer = (*Exchange)(nil)

// errRefused says that the backend, or a router, refuses datagrams.
var errRefused = errors.New("the backend refuses datagrams")

// Exchange begins an Exchange between the client, which writes to the local address, and a backend, which sees the
// client as seen. A seen port of 0 means any port, and so does one that is in use already. An invalid local address
// leaves it to the kernel from where answers leave. heard is called with nil for each answer, and with an error when
// the backend refuses; the caller closes the Exchange then. heard must not block.
func (d *Door) Exchange(client netip.AddrPort, local netip.Addr, seen, backend netip.AddrPort, heard func(error)) (io.Closer, error) {
	seen, err := d.r.o.ClientFor(seen, backend)
	if err != nil {
		return nil, err
	}
	x := &Exchange{door: d, to: dgram.AddrFrom(client), heard: heard}
	if local.IsValid() {
		x.from = packet.AddrFrom(local)
	}
	x.answers = packet.Tuple{
		Src: packet.AddrFrom(backend.Addr()), SrcPort: backend.Port(), Dst: packet.AddrFrom(seen.Addr()), DstPort: seen.Port(), Proto: packet.UDP,
	}
	if x.answers.Src.Is4() != d.is4 {
		return nil, fmt.Errorf("carry datagrams of %s to %s: the addresses are of different families", client, backend)
	}
	if !d.r.reserve(x) {
		return nil, fmt.Errorf("carry datagrams of %s to %s: %w", client, backend, unix.EADDRINUSE)
	}
	asks := x.answers.Reverse()
	x.head = superframe.HeaderOf(&asks)
	return x, nil
}

// reserve enters x with its own port on the client's side, or another one.
func (r *Relay) reserve(x *Exchange) bool {
	if x.answers.DstPort != 0 && r.add(x) {
		return true
	}
	for range 64 {
		x.answers.DstPort = uint16(FirstPort + rand.IntN(LastPort-FirstPort+1))
		if r.add(x) {
			return true
		}
	}
	return false
}

// Seen returns the port of the client that the backend sees.
func (x *Exchange) Seen() uint16 { return x.answers.DstPort }

// Close ends the Exchange. Closing twice is harmless.
func (x *Exchange) Close() error {
	if x.over.Swap(true) {
		return nil
	}
	r := x.door.r
	s := r.shard(&x.answers)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.exchanges, x.answers)
	r.count.Add(-1)
	return nil
}

// way is where the client's datagrams go. mtu is the pods'.
func (x *Exchange) way(mtu int) superframe.Way {
	if n := int(x.narrow.Load()); n != 0 {
		mtu = min(mtu, n)
	}
	return superframe.Way{Header: &x.head, MTU: mtu}
}

// answer sends the backend's datagrams to the client. What cannot be sent is lost, as UDP allows.
func (x *Exchange) answer(p *packet.Packet) {
	if !x.door.acquire() {
		return
	}
	defer x.door.release()
	x.door.send(x, p)
	x.heard(nil)
}

const (
	// least4 and least6 are the smallest MTUs that are believed: a host accepts packets of these sizes (RFC 791 3.1,
	// RFC 8200 5). With less, one datagram would cost very many fragments.
	least4, least6 = 576, 1280
	// ICMP types and codes (RFC 792, RFC 4443).
	unreachable4, unreachable6 = 3, 1
	fragNeeded4, tooBig6       = 4, 2
)

// fault handles an ICMP error about a datagram that went to the backend.
func (x *Exchange) fault(p *packet.Packet) {
	h := p.IP[p.L4:]
	switch {
	case p.Tuple.Proto == packet.ICMPv4 && p.ICMPType == unreachable4 && p.ICMPCode == fragNeeded4:
		x.narrow.Store(max(uint32(be.Uint16(h[6:])), least4))
	case p.Tuple.Proto == packet.ICMPv6 && p.ICMPType == tooBig6:
		x.narrow.Store(max(be.Uint32(h[4:]), least6))
	case p.Tuple.Proto == packet.ICMPv4 && p.ICMPType == unreachable4, p.Tuple.Proto == packet.ICMPv6 && p.ICMPType == unreachable6:
		x.heard(errRefused)
	}
}
