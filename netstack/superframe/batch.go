package superframe

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// Width is how many messages one call reads at most. Each may be 64 KiB of datagrams that the kernel has coalesced.
	Width = 16
	// slot is the size of the largest message with the headers before it.
	slot = maxHead + 1<<16
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// Batch is the memory for the messages of one call. One goroutine uses it at a time.
type Batch struct {
	msgs  [Width]mmsghdr
	iovs  [Width]unix.Iovec
	ctls  [Width]dgram.Control
	names [Width]dgram.Addr // senders of the messages
	head  int               // where the messages begin in their slots
	// slots receive the messages of a call. Only those pages that datagrams have filled are backed by memory.
	slots []byte
	whole []byte // room for a datagram that is cut into fragments, and for one fragment
}

// Pool has Batches that nobody uses at the moment. The zero value is ready.
type Pool struct {
	mu    sync.Mutex
	spare []*Batch
}

// Get returns a Batch, to be given back by Put.
func (p *Pool) Get() *Batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.spare); n > 0 {
		b := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return b
	}
	return &Batch{slots: make([]byte, Width*slot)}
}

// Put gives back a Batch.
func (p *Pool) Put(b *Batch) {
	p.mu.Lock()
	p.spare = append(p.spare, b)
	p.mu.Unlock()
}

// Receive reads up to want messages of one family from a socket, without blocking.
func (b *Batch) Receive(fd int, is4 bool, want int) (int, unix.Errno) {
	b.head = HeadLen(is4)
	for i := range b.msgs[:want] {
		room := b.slot(i)[b.head:]
		b.iovs[i].Base = unsafe.SliceData(room)
		b.iovs[i].SetLen(len(room))
		m := &b.msgs[i]
		b.names[i].From(&m.Msghdr)
		m.Iov = &b.iovs[i]
		m.SetIovlen(1)
		b.ctls[i].For(&m.Msghdr)
	}
	// Raw, as all calls of package dgram.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(want), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// Name returns the sender of message i.
func (b *Batch) Name(i int) *dgram.Addr { return &b.names[i] }

// Local returns the address to which message i was sent (dgram.Control.Local).
func (b *Batch) Local(i int) packet.Addr { return b.ctls[i].Local(&b.msgs[i].Msghdr) }

// Each calls f for each datagram of message i. f must not keep it.
func (b *Batch) Each(i int, f func(datagram []byte)) {
	m := b.message(i)
	data := b.slot(i)[b.head:][:m.n]
	for first := true; first || len(data) > 0; first = false {
		n := min(m.size, len(data))
		f(data[:n])
		data = data[n:]
	}
}

func (b *Batch) slot(i int) []byte { return b.slots[i*slot : (i+1)*slot] }

// message returns message i as a run that goes nowhere.
func (b *Batch) message(i int) run {
	came, size := b.ctls[i].Read(&b.msgs[i].Msghdr)
	n := int(b.msgs[i].n)
	if size <= 0 {
		size = n
	}
	return run{slot: i, n: n, size: size, came: came}
}

// Way is where datagrams go: with which headers, and as packets of which size at most. A Way without Header leads
// nowhere.
type Way struct {
	*Header
	MTU int
}

// Out is where packets go.
type Out struct {
	// Send sends an IP packet, which may be a superframe, with its virtio-net header. It must not keep ip.
	Send func(ip []byte, vnet packet.VNetHdr)
	// fragID is the identification of the last datagram that was cut. Datagrams of one pair of addresses must not share
	// one.
	fragID atomic.Uint32
}

// Pass sends the first n messages, message i where way says. It reports whether the first one was coalesced by the
// kernel. Such messages fill superframes by themselves and need not be copied, so that it is best to read one at a
// time.
func (b *Batch) Pass(n int, o *Out, way func(i int) Way) (bulk bool) {
	var r run
	for i := range n {
		msg := b.message(i)
		if i == 0 {
			bulk = msg.n > msg.size
		}
		if msg.to = way(i); msg.to.Header == nil {
			continue
		}
		switch {
		case r.joins(&msg, maxIP-b.head):
			copy(b.slot(r.slot)[b.head+r.n:], b.slot(i)[b.head:b.head+msg.n])
			r.n += msg.n
		case b.head+min(msg.size, msg.n) > msg.to.MTU:
			b.flush(o, &r)
			b.cut(o, &msg)
		default:
			b.flush(o, &r)
			r = msg
		}
	}
	b.flush(o, &r)
	return bulk
}

// run is a message, or a superframe that is being collected in the message's slot: n bytes of datagrams that go one
// way, of size bytes each, where the last may be shorter. If to has no Header, there is no run.
type run struct {
	to            Way
	slot, n, size int
	came          dgram.Head // what the datagrams' own IP headers said
}

// joins reports whether m may be appended to the run, of room bytes at most.
func (r *run) joins(m *run, room int) bool {
	n, size := m.n, m.size
	if r.to.Header != m.to.Header || r.came != m.came || n == 0 || r.size == 0 || r.n%r.size != 0 || r.n+n > room ||
		(r.n+n-1)/r.size >= maxSegments {
		return false
	}
	return size == r.size || n == size && n < r.size
}

// flush sends the run, if there is one, and clears it.
func (b *Batch) flush(o *Out, r *run) {
	if h := r.to.Header; h != nil {
		ip := b.slot(r.slot)[:h.Len()+r.n]
		o.Send(ip, h.put(ip, r.size, r.came))
	}
	*r = run{}
}

// cut sends datagrams that do not fit their way in fragments.
func (b *Batch) cut(o *Out, m *run) {
	if b.whole == nil {
		b.whole = make([]byte, 2*slot)
	}
	for data := b.slot(m.slot)[m.to.Len():][:m.n]; len(data) > 0; {
		n := min(m.size, len(data))
		c := cut{m.to.MTU, o.fragID.Add(1), m.came}
		m.to.fragments(data[:n], c, b.whole, func(ip []byte) { o.Send(ip, packet.VNetHdr{}) })
		data = data[n:]
	}
}
