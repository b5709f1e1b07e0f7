// Package overlaytest is an underlay in memory, over which several Meshes in one process talk. A test decides which
// datagrams the underlay loses, delays, reorders or refuses to carry.
package overlaytest

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// Impairment says what happens to datagrams in one direction. The zero value carries everything at once, in order.
type Impairment struct {
	// Loss, Reorder and Duplicate are probabilities, 0 to 1. A reordered datagram arrives Delay+Late after it was sent.
	Loss, Reorder, Duplicate float64
	Delay, Late              time.Duration
	// MTU is the largest IP packet in bytes that is carried; larger ones vanish without a word. 0: any.
	MTU int
	// Partition carries nothing.
	Partition bool
}

// Underlay connects Binds.
type Underlay struct {
	mu sync.Mutex // guards all below
	// rnd decides which datagrams are impaired. It is seeded, so that a test repeats.
	rnd    *rand.Rand
	binds  map[netip.AddrPort]*Bind
	links  map[[2]netip.Addr]Impairment
	late   schedule
	serial uint64
	seen   func(Datagram)
	wake   chan struct{}
	stop   chan struct{}
	done   sync.WaitGroup
}

// Datagram is one datagram as a capture on the underlay sees it; Payload is borrowed.
type Datagram struct {
	From, To netip.AddrPort
	Payload  []byte
}

// New makes an underlay whose random decisions follow from seed.
func New(seed uint64) *Underlay {
	u := &Underlay{
		rnd:   rand.New(rand.NewPCG(seed, seed)),
		binds: make(map[netip.AddrPort]*Bind), links: make(map[[2]netip.Addr]Impairment),
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	u.done.Add(1)
	go u.run()
	return u
}

// Close ends the underlay. Delayed datagrams are lost.
func (u *Underlay) Close() {
	close(u.stop)
	u.done.Wait()
}

// Impair sets what happens from now on to datagrams from one address to another.
func (u *Underlay) Impair(from, to netip.Addr, i Impairment) {
	u.mu.Lock()
	u.links[[2]netip.Addr{from, to}] = i
	u.mu.Unlock()
}

// Capture has f see every datagram that is sent, lost ones included. f must not send.
func (u *Underlay) Capture(f func(Datagram)) {
	u.mu.Lock()
	u.seen = f
	u.mu.Unlock()
}

// Inject delivers payload to the Bind at to, as if from had sent it. The underlay keeps payload.
func (u *Underlay) Inject(from, to netip.AddrPort, payload []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.deliverLocked(parcel{from: from, to: to, payload: payload})
}

// Bind makes a conn.Bind at addr for one Mesh, and at more addresses of other families. A later Bind at the same
// address replaces it, as a restarted agent does.
func (u *Underlay) Bind(addr netip.AddrPort, more ...netip.AddrPort) *Bind {
	return &Bind{u: u, addrs: append([]netip.AddrPort{addr}, more...)}
}

// parcel is a datagram under way.
type parcel struct {
	from, to netip.AddrPort
	payload  []byte // owned by the underlay
	due      time.Time
	serial   uint64
}

// schedule is a heap by time, then by order of sending.
type schedule []parcel

func (s schedule) Len() int      { return len(s) }
func (s schedule) Swap(i, j int) { s[i], s[j] = s[j], s[i] }
func (s schedule) Less(i, j int) bool {
	if s[i].due.Equal(s[j].due) {
		return s[i].serial < s[j].serial
	}
	return s[i].due.Before(s[j].due)
}
func (s *schedule) Push(x any) { *s = append(*s, x.(parcel)) }
func (s *schedule) Pop() any {
	last := (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return last
}

func (u *Underlay) send(from, to netip.AddrPort, payload []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.seen != nil {
		u.seen(Datagram{from, to, payload})
	}
	i := u.links[[2]netip.Addr{from.Addr(), to.Addr()}]
	header := 48
	if to.Addr().Is4() {
		header = 28
	}
	if i.Partition || i.MTU > 0 && len(payload)+header > i.MTU || u.rnd.Float64() < i.Loss {
		return
	}
	copies := 1
	if u.rnd.Float64() < i.Duplicate {
		copies = 2
	}
	for range copies {
		p := parcel{from: from, to: to, payload: append([]byte(nil), payload...)}
		delay := i.Delay
		if u.rnd.Float64() < i.Reorder {
			delay += i.Late
		}
		if delay == 0 {
			u.deliverLocked(p)
			continue
		}
		u.serial++
		p.due, p.serial = time.Now().Add(delay), u.serial
		heap.Push(&u.late, p)
		select {
		case u.wake <- struct{}{}:
		default:
		}
	}
}

// deliverLocked puts p into the receiver's queue. A full queue drops p, as a socket does.
func (u *Underlay) deliverLocked(p parcel) {
	b := u.binds[p.to]
	if b == nil {
		return
	}
	select {
	case b.inbox <- p:
	default:
	}
}

// run delivers delayed datagrams when they are due.
func (u *Underlay) run() {
	defer u.done.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		u.mu.Lock()
		now := time.Now()
		for len(u.late) > 0 && !u.late[0].due.After(now) {
			u.deliverLocked(heap.Pop(&u.late).(parcel))
		}
		wait := time.Hour
		if len(u.late) > 0 {
			wait = u.late[0].due.Sub(now)
		}
		u.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-u.stop:
			return
		case <-u.wake:
		case <-timer.C:
		}
	}
}

// Bind is one place on the underlay.
type Bind struct {
	u      *Underlay
	addrs  []netip.AddrPort
	inbox  chan parcel
	closed chan struct{}
}

var _ conn.Bind = (*Bind)(nil)

// endpoint is an address on the underlay.
type endpoint netip.AddrPort

var _ conn.Endpoint = endpoint{}

func (endpoint) ClearSrc()                  {}
func (endpoint) SrcToString() string        { return "" }
func (endpoint) SrcIP() netip.Addr          { return netip.Addr{} }
func (e endpoint) DstToString() string      { return netip.AddrPort(e).String() }
func (e endpoint) AddrPort() netip.AddrPort { return netip.AddrPort(e) }
func (e endpoint) DstIP() netip.Addr        { return netip.AddrPort(e).Addr() }
func (e endpoint) DstToBytes() []byte {
	b, _ := netip.AddrPort(e).MarshalBinary()
	return b
}

// Open implements conn.Bind.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.u.mu.Lock()
	defer b.u.mu.Unlock()
	b.inbox, b.closed = make(chan parcel, 4096), make(chan struct{})
	for _, a := range b.addrs {
		b.u.binds[a] = b
	}
	return []conn.ReceiveFunc{receiver(b.inbox, b.closed)}, b.addrs[0].Port(), nil
}

func receiver(inbox <-chan parcel, closed <-chan struct{}) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n := 0
		put := func(p parcel) {
			sizes[n] = copy(bufs[n], p.payload)
			eps[n] = endpoint(p.from)
			n++
		}
		select {
		case <-closed:
			return 0, net.ErrClosed
		case p := <-inbox:
			put(p)
		}
		for n < len(bufs) {
			select {
			case p := <-inbox:
				put(p)
			default:
				return n, nil
			}
		}
		return n, nil
	}
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.u.mu.Lock()
	defer b.u.mu.Unlock()
	if b.closed == nil {
		return nil
	}
	close(b.closed)
	b.closed = nil
	for _, a := range b.addrs {
		if b.u.binds[a] == b {
			delete(b.u.binds, a)
		}
	}
	return nil
}

// Send implements conn.Bind.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	to, ok := ep.(endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	from := b.addrs[0]
	for _, a := range b.addrs {
		if a.Addr().Is4() == to.DstIP().Is4() {
			from = a
			break
		}
	}
	for _, p := range bufs {
		b.u.send(from, netip.AddrPort(to), p)
	}
	return nil
}

// SetMark implements conn.Bind; marks mean nothing here.
func (b *Bind) SetMark(uint32) error { return nil }

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", s, err)
	}
	return endpoint(ap), nil
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return conn.IdealBatchSize }
