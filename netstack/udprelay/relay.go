package udprelay

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/superframe"
	"tapestry.dev/tapestry/share"
)

// Options of a Relay. Poller, Send, Refuse and MTU are required.
type Options struct {
	// Poller watches the sockets. It must outlive the Relay.
	Poller *poll.Poller
	// Send sends an IP packet, which may be a superframe, through the pipeline to a pod, with its virtio-net header. It
	// must not keep ip.
	Send func(ip []byte, vnet packet.VNetHdr)
	// Refuse tells the sender of p, a datagram like one that was sent before, that it did not arrive, and why. by is
	// the router or host outside that says so; the zero address stands for none. Refuse must not keep p.
	Refuse func(p *packet.Packet, why packet.ICMPError, by packet.Addr)
	// MTU returns the present MTU of the pods, in bytes.
	MTU func() int
	// Idle is how long an idle conversation is kept.
	Idle time.Duration
	// Owner returns the owner that is charged for what an address sends. If it is nil, each address is its own owner.
	Owner func(packet.Addr) packet.Addr
	// MaxSockets bounds the number of host sockets, one for each address and port of a pod; 0 means 4,096.
	MaxSockets int
	// MaxConversations bounds the number of conversations; 0 means twice MaxSockets.
	MaxConversations int
	// Hold lets mappings outlive the Relay. If it is nil, they end with it.
	Hold *Hold
}

const defaultSockets = 4096

// Errors of Send. Other errors say why a host socket could not be opened, or why the host did not send.
var (
	// ErrTooBig says that the datagram must not be fragmented and does not fit the path.
	ErrTooBig = errors.New("the datagram does not fit the path")
	// ErrBusy says that the host's socket has no room, so the datagram is lost.
	ErrBusy = errors.New("the host's socket has no room for the datagram")
	// ErrTooMany says that other owners have all conversations or sockets, and none of them has two.
	ErrTooMany = errors.New("there are too many conversations")
)

// Relay holds the conversations. Its methods are safe for concurrent use.
type Relay struct {
	o     Options
	table table
	start time.Time
	now   atomic.Int64 // since start, as of the last Sweep
	out   superframe.Out
	// strange counts datagrams from senders that the pod has not sent to.
	strange atomic.Uint64

	// The shares of sockets and conversations, charged to Options.Owner of the pods' addresses.
	sockets *share.Limit[packet.Addr, *mapping]
	talks   *share.Limit[packet.Addr, *conversation]

	mu       sync.Mutex // guards changes of table, and the rest
	order    order
	mappings map[packet.Endpoint]*mapping
	hold     *holder // nil: nothing outlives the Relay
	closed   bool

	batches superframe.Pool
}

// New makes a Relay without conversations. The caller must call Run, or Sweep from time to time.
func New(o Options) *Relay {
	o.MaxSockets = cmp.Or(o.MaxSockets, defaultSockets)
	if o.Owner == nil {
		o.Owner = func(a packet.Addr) packet.Addr { return a }
	}
	o.MaxConversations = cmp.Or(o.MaxConversations, 2*o.MaxSockets)
	r := &Relay{
		o: o, table: newTable(o.MaxConversations), start: time.Now(), mappings: map[packet.Endpoint]*mapping{},
		sockets: share.New[packet.Addr, *mapping](share.Options[packet.Addr]{Total: o.MaxSockets}),
		talks:   share.New[packet.Addr, *conversation](share.Options[packet.Addr]{Total: o.MaxConversations}),
	}
	r.out.Send = o.Send
	if o.Hold != nil {
		r.hold = newHolder(*o.Hold)
	}
	return r
}

// Send sends the datagrams of p, which a pod sent, to the outside. p is UDP and unfragmented, and its checksum is right
// or partial. Send does not keep p. Without p.DontFragment the host may fragment the datagram. mtu is set with
// ErrTooBig only: it is the size of the largest IP packet that fits, in bytes.
func (r *Relay) Send(p *packet.Packet) (mtu int, err error) {
	c := r.table.find(&p.Tuple)
	known := c != nil && c.m.acquire()
	if !known {
		if c, err = r.open(&p.Tuple); err != nil {
			return 0, fmt.Errorf("send from %s to %s: %w", p.Tuple.Src, p.Tuple.Dst, err)
		}
	}
	defer c.m.release()
	c.touch()
	mtu, err = c.send(p)
	if err != nil && !known && err != ErrBusy && err != ErrTooBig {
		r.end(c) // nothing was sent, so no answer can come
	}
	return mtu, err
}

// open begins a conversation, or finds one that another goroutine has just begun. It returns the conversation with its
// mapping acquired.
func (r *Relay) open(t *packet.Tuple) (*conversation, error) {
	for {
		m, err := r.mapping(packet.Endpoint{Addr: t.Src, Port: t.SrcPort})
		if err != nil {
			return nil, err
		}
		c := newConversation(m, t)
		lost, ok := r.talks.Acquire(&c.claim, r.o.Owner(t.Src))
		if lost != nil {
			r.end(lost.Value)
		}
		if ok {
			there := r.insert(c)
			if there == c {
				return c, nil
			}
			r.talks.Release(&c.claim)
			if there != nil {
				m.release()
				return there, nil
			}
		}
		r.endVacant(m)
		m.release()
		if !ok {
			return nil, ErrTooMany
		}
	}
}

// insert adds c and returns it. If a conversation with the same tuple exists already, insert returns that one,
// acquired. It returns nil when c or its mapping has ended.
func (r *Relay) insert(c *conversation) (there *conversation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.m.gone || c.gone {
		return nil
	}
	if other := r.table.find(&c.tuple); other != nil {
		other.m.users.Add(1)
		return other
	}
	r.table.add(c)
	r.hold.record(c)
	heap.Push(&r.order, c)
	c.at = len(c.m.talks)
	c.m.talks = append(c.m.talks, c)
	return c
}

// mapping returns the mapping of an address and port of a pod, acquired. A new one has no conversations yet.
func (r *Relay) mapping(pod packet.Endpoint) (*mapping, error) {
	if m := r.mapped(pod); m != nil {
		return m, nil
	}
	m, err := r.newMapping(pod)
	if err != nil {
		return nil, fmt.Errorf("open a host socket: %w", err)
	}
	r.mu.Lock()
	other := r.mappings[pod]
	good := !r.closed && !m.gone && other == nil
	if good {
		m.users.Add(1)
		r.mappings[pod] = m
		if r.hold != nil {
			r.hold.fresh = append(r.hold.fresh, m)
		}
	} else if other != nil {
		other.users.Add(1)
	}
	closed := r.closed
	r.mu.Unlock()
	if good {
		return m, nil
	}
	r.sockets.Release(&m.claim)
	m.release()
	switch {
	case closed:
		return nil, net.ErrClosed
	case other != nil:
		return other, nil
	}
	return nil, ErrTooMany // the new socket was taken away again before it was used
}

func (r *Relay) mapped(pod packet.Endpoint) *mapping {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.mappings[pod]
	if m != nil {
		m.users.Add(1) // m is in use: a mapping that ends is removed from mappings first
	}
	return m
}

// newMapping opens a socket within the bound. If descriptors or ports run out before the bound is reached, a pod that
// has many gives one up.
func (r *Relay) newMapping(pod packet.Endpoint) (*mapping, error) {
	m := &mapping{r: r, pod: pod, slot: noSlot}
	m.claim.Value = m
	lost, ok := r.sockets.Acquire(&m.claim, r.o.Owner(pod.Addr))
	if lost != nil {
		r.endMapping(lost.Value)
	}
	if !ok {
		return nil, ErrTooMany
	}
	err := m.open()
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.ENOBUFS) {
		if lost, ok = r.sockets.Take(r.o.Owner(pod.Addr)); ok && lost != &m.claim {
			r.endMapping(lost.Value)
			err = m.open()
		}
	}
	if err != nil {
		r.sockets.Release(&m.claim)
		return nil, err
	}
	return m, nil
}

// end ends c, once, and its mapping with the last conversation. A goroutine that is using c may finish.
func (r *Relay) end(c *conversation) {
	r.mu.Lock()
	there := c.place < len(r.order) && r.order[c.place] == c
	c.gone = true
	if there {
		r.remove(c)
	}
	vacant := there && r.vacate(c.m)
	r.mu.Unlock()
	if there {
		r.talks.Release(&c.claim)
	}
	if vacant {
		r.drop(c.m)
	}
}

// remove removes c from everything but the bounds. The caller holds mu.
func (r *Relay) remove(c *conversation) {
	heap.Remove(&r.order, c.place)
	r.table.remove(c)
	r.hold.erase(c)
	talks := c.m.talks
	last := len(talks) - 1
	talks[c.at] = talks[last]
	talks[c.at].at = c.at
	talks[last] = nil
	c.m.talks = talks[:last]
}

// vacate removes m from the mappings if it has no conversations, and reports whether it did. The caller holds mu, and
// drops m after releasing it.
func (r *Relay) vacate(m *mapping) bool {
	if m.gone || len(m.talks) > 0 {
		return false
	}
	m.gone = true
	delete(r.mappings, m.pod)
	return true
}

// drop releases a mapping that vacate has removed.
func (r *Relay) drop(m *mapping) {
	r.sockets.Release(&m.claim)
	r.mu.Lock()
	keeping := m.keeping // whoever keeps it drops the rest
	r.mu.Unlock()
	if !keeping {
		r.forget(m)
		m.release()
	}
}

// endVacant ends m if it has no conversations.
func (r *Relay) endVacant(m *mapping) {
	r.mu.Lock()
	vacant := r.vacate(m)
	r.mu.Unlock()
	if vacant {
		r.drop(m)
	}
}

// endMapping ends m and all its conversations.
func (r *Relay) endMapping(m *mapping) {
	r.mu.Lock()
	was := m.gone
	talks := slices.Clone(m.talks)
	for _, c := range talks {
		r.remove(c)
	}
	m.gone = true
	inUse := r.mappings[m.pod] == m
	if inUse {
		delete(r.mappings, m.pod)
	}
	r.mu.Unlock()
	for _, c := range talks {
		r.talks.Release(&c.claim)
	}
	if !was && inUse {
		r.drop(m)
	}
}

// endIdle ends the conversation that has been idle for longest, if its last use was before that time since start. It
// reports whether it did.
func (r *Relay) endIdle(before time.Duration) bool {
	r.mu.Lock()
	c := r.order.oldest()
	found := c != nil && time.Duration(c.known) < before
	r.mu.Unlock()
	if found {
		r.end(c)
	}
	return found
}

// endAll ends the mappings of those pods for which of returns true.
func (r *Relay) endAll(of func(packet.Addr) bool) {
	r.mu.Lock()
	var gone []*mapping
	for pod, m := range r.mappings {
		if of(pod.Addr) {
			gone = append(gone, m)
		}
	}
	r.mu.Unlock()
	for _, m := range gone {
		r.endMapping(m)
	}
}

// Forget ends the conversations of a pod that was removed.
func (r *Relay) Forget(pod netip.Addr) {
	gone := packet.AddrFrom(pod)
	r.endAll(func(a packet.Addr) bool { return a == gone })
}

// Sweep sets the Relay's clock and ends the conversations that have been idle for longer than Options.Idle.
func (r *Relay) Sweep(now time.Time) {
	t := now.Sub(r.start)
	r.now.Store(int64(t))
	for t > r.o.Idle && r.endIdle(t-r.o.Idle) {
	}
	r.keep()
}

// Run sweeps until ctx ends: every second, or more often where Idle is short.
func (r *Relay) Run(ctx context.Context) {
	tick := time.NewTicker(max(10*time.Millisecond, min(time.Second, cmp.Or(r.o.Idle, time.Second)/8)))
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

// Stats holds what is in use now, and counters since New.
type Stats struct {
	// Sockets counts one for each address and port of a pod. Conversations counts whom these talk to.
	Sockets, Conversations share.Stats
	// Strange counts datagrams for a pod from senders that it has not sent to. They are dropped.
	Strange uint64
}

// Stats returns the current use and the counters.
func (r *Relay) Stats() Stats {
	return Stats{Sockets: r.sockets.Stats(), Conversations: r.talks.Stats(), Strange: r.strange.Load()}
}

// Len returns the number of conversations.
func (r *Relay) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.order)
}

// Close ends all conversations, but for those that are held: they go on in the next Relay. No new one can begin.
func (r *Relay) Close() {
	r.keep()
	r.mu.Lock()
	r.closed = true
	if r.hold != nil {
		r.hold.leaving = true
	}
	r.mu.Unlock()
	r.endAll(func(packet.Addr) bool { return true })
}
