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
)

// Options are what a Relay needs.
type Options struct {
	// Poller watches the sockets. It must outlive the Relay.
	Poller *poll.Poller
	// Send carries an IP packet for a pod, a superframe perhaps, through the pipeline, with its virtio-net header. It is borrowed.
	Send func(ip []byte, vnet packet.VNetHdr)
	// MTU is the pods' MTU in bytes, now.
	MTU func() int
	// Idle is how long an idle conversation is kept.
	Idle time.Duration
	// Max bounds the conversations. 0 is half of the descriptors that the process may have, and 16,384 at most: their ports
	// come from the host's range of some 28,000.
	Max int
}

// defaultMax is the bound where descriptors are plenty.
const defaultMax = 16384

// Errors of Send. Others say why a host socket could not be had, or why the host would not send.
var (
	// ErrTooBig: the datagram may not be fragmented, and the way is narrower.
	ErrTooBig = errors.New("the datagram does not fit the path")
	// ErrBusy: the host's socket has no room. Datagrams are lost where there is no room.
	ErrBusy = errors.New("the host's socket has no room for the datagram")
)

// Relay has the conversations. Its methods are safe for concurrent use.
type Relay struct {
	o     Options
	table table
	start time.Time
	now   atomic.Int64 // since start, as of the last Sweep
	// fragID is the identification of the last datagram that was cut: no two of one pod and one address may have the same.
	fragID atomic.Uint32

	mu     sync.Mutex // guards changes of table, and the rest
	order  order
	closed bool

	spare struct {
		sync.Mutex
		receivers []*receiver
	}
}

// New makes a Relay without conversations. Somebody must call Run, or Sweep from time to time.
func New(o Options) *Relay {
	if o.Max == 0 {
		o.Max = defaultMax
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil && lim.Cur/2 < defaultMax {
			o.Max = max(1, int(lim.Cur/2))
		}
	}
	return &Relay{o: o, table: newTable(o.Max), start: time.Now()}
}

// Send sends the datagrams of p, which a pod sent, on their way. p is UDP and whole, its checksum right or partial; it is borrowed.
// Without DontFragment the host may fragment. With ErrTooBig comes the largest IP packet, in bytes, that fits.
func (r *Relay) Send(p *packet.Packet) (mtu int, err error) {
	c := r.table.find(&p.Tuple)
	if c == nil || !c.acquire() {
		if c, err = r.open(&p.Tuple); err != nil {
			return 0, err
		}
	}
	defer c.release()
	c.touch()
	return c.send(p)
}

// open begins a conversation and gives it acquired.
func (r *Relay) open(t *packet.Tuple) (*conversation, error) {
	c, err := r.dial(t)
	if err != nil {
		return nil, fmt.Errorf("open a host socket to %s: %w", packet.Endpoint{Addr: t.Dst, Port: t.DstPort}.AddrPort(), err)
	}
	for {
		other, oldest := r.insert(c)
		switch {
		case oldest != nil:
			r.end(oldest)
			continue
		case other == c:
			return c, nil
		}
		c.release()
		if other == nil {
			return nil, net.ErrClosed
		}
		if other.acquire() {
			return other, nil
		}
		return nil, fmt.Errorf("begin a conversation: it ended at once: %w", net.ErrClosed)
	}
}

// insert adds c, or gives the other one of the same tuple that is there already, or the oldest one that has to go first. All
// are nil after Close.
func (r *Relay) insert(c *conversation) (there, oldest *conversation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nil
	}
	if other := r.table.find(&c.tuple); other != nil {
		return other, nil
	}
	if len(r.order) >= r.o.Max {
		return nil, r.order.oldest()
	}
	c.users.Add(1)
	r.table.add(c)
	heap.Push(&r.order, c)
	return c, nil
}

// dial opens the socket of a conversation. Where descriptors or ports have run out, the oldest conversation gives its own.
func (r *Relay) dial(t *packet.Tuple) (*conversation, error) {
	c, err := newConversation(r, t)
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		if r.endOldest(-1) {
			return newConversation(r, t)
		}
	}
	return c, err
}

// endOldest ends the conversation idle for longest if it was last used before that time; -1 for any. It reports whether it did.
func (r *Relay) endOldest(before time.Duration) bool {
	r.mu.Lock()
	c := r.order.oldest()
	found := c != nil && (before < 0 || time.Duration(c.known) < before)
	r.mu.Unlock()
	if found {
		r.end(c)
	}
	return found
}

// end ends c, once. Who uses it at this moment may finish.
func (r *Relay) end(c *conversation) {
	r.mu.Lock()
	there := c.place < len(r.order) && r.order[c.place] == c
	if there {
		heap.Remove(&r.order, c.place)
		r.table.remove(c)
	}
	r.mu.Unlock()
	if there {
		c.release()
	}
}

// Forget ends the conversations of a pod that is gone.
func (r *Relay) Forget(pod netip.Addr) {
	src := packet.AddrFrom(pod)
	r.mu.Lock()
	gone := slices.DeleteFunc(slices.Clone(r.order), func(c *conversation) bool { return c.tuple.Src != src })
	r.mu.Unlock()
	for _, c := range gone {
		r.end(c)
	}
}

// Sweep sets the Relay's clock and ends the conversations that have been idle for too long.
func (r *Relay) Sweep(now time.Time) {
	t := now.Sub(r.start)
	r.now.Store(int64(t))
	for t > r.o.Idle && r.endOldest(t-r.o.Idle) {
	}
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

// Len is the number of conversations.
func (r *Relay) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.order)
}

// Close ends all conversations and lets none begin.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for r.endOldest(-1) {
	}
}
