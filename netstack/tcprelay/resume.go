package tcprelay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// point is where the two streams of a connection are.
type point struct {
	written  uint32 // bytes of the pod's stream that the socket has accepted
	shut     bool   // and that the socket was told its end
	consumed uint32 // bytes of the socket's stream that were consumed
	most     uint32 // our highest number that the pod may know, and one more
}

var (
	errOther   = errors.New("the socket is another connection's")
	errState   = errors.New("the socket is not connected")
	errNumbers = errors.New("the numbers do not agree with those of the socket")
)

// resume works out where the streams are, out of what the Relay before has recorded and what the kernel counts now. It
// returns an error when they do not agree. Then nothing may be sent, as it could be the wrong bytes.
func resume(r *record, k *counts) (p point, err error) {
	if r.cookie != k.cookie {
		return p, errOther
	}
	p.written = k.written - r.base
	if end := r.podEnd - (r.irs + 1); r.hasPod && p.written == end+1 {
		p.written, p.shut = end, true
	} else if r.hasPod && p.written != end {
		return p, errNumbers
	}
	start := r.iss + 1
	arrived := k.received
	switch k.state {
	case unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_FIN_WAIT2:
	case unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING:
		arrived-- // the end was counted, too
	case unix.BPF_TCP_CLOSE:
		// A reset, or both ends. Whether an end was counted, the socket does not tell.
		if arrived, err = closed(r, k); err != nil {
			return p, err
		}
	default:
		return p, errState
	}
	p.consumed = arrived - k.unread
	if first := start + p.consumed; first-r.low > r.high-r.low {
		return p, errNumbers
	}
	p.most = start + arrived
	if r.hasHost {
		if p.most != r.hostEnd {
			return p, errNumbers
		}
		p.most++
	}
	return p, nil
}

// closed returns how many bytes have arrived at a socket that is closed.
func closed(r *record, k *counts) (uint32, error) {
	start := r.iss + 1
	if r.hasHost {
		return r.hostEnd - start, nil
	}
	fits := func(arrived uint32) bool {
		first := start + arrived - k.unread
		return first == r.low || first == r.high // one call consumes all that it was to consume
	}
	switch with, without := fits(k.received), fits(k.received-1); {
	case with && without: // killed while it consumed one byte
		return 0, errNumbers
	case without:
		return k.received - 1, nil
	}
	return k.received, nil
}

// Resumed says what Resume has found.
type Resumed struct {
	// Resumed counts connections that go on. Lost counts those that cannot: their pod is gone, or what is known of them
	// is not whole. Both their ends are reset.
	Resumed, Lost int
}

// Resume takes over the connections of the Relay before, as far as their pods are here. Nothing of a pod of this node
// may be delivered before. GoOn has to follow.
func (r *Relay) Resume(here func(pod netip.Addr) bool) (n Resumed) {
	h := r.hold
	if h == nil || h.resumed {
		return n
	}
	h.resumed = true
	defer r.resuming.Store(false)
	var slots []uint32
	h.Memory.Used(func(s uint32) {
		if _, there := h.Found[s]; there {
			slots = append(slots, s)
		} else {
			h.Memory.Clear(s)
		}
	})
	for i, c := range r.reviveAll(slots, here) {
		s := slots[i]
		fd := h.Found[s]
		delete(h.Found, s)
		if c.conn == nil {
			n.Lost++
			h.Memory.Clear(s)
			reset(fd)
			unix.Close(fd)
			h.Release(s)
			continue
		}
		h.reserve(s)
		h.revived = append(h.revived, c)
		n.Resumed++
	}
	for s, fd := range h.Found { // sockets without a record
		if !ended(fd) {
			reset(fd)
		}
		unix.Close(fd)
		h.Release(s)
	}
	h.Found = nil
	return n
}

const (
	// askedAtOnce is how many pods are asked before their answers are waited for. The answers wait in the pods' queues,
	// which hold 1,000 frames, beside what the pods have said while nobody heard them. What does not fit there is lost.
	askedAtOnce = 64
	// answerTime is how long the answers are waited for. Some pods are far, or do not answer.
	answerTime = 2 * time.Millisecond
	answerLook = 100 * time.Microsecond
)

// GoOn carries the connections that Resume has taken over: each pod is asked how far it is. What pods answer should be
// delivered meanwhile. Those go on first whose sockets have received something last, as that waits for the pod.
func (r *Relay) GoOn() {
	if r.hold == nil {
		return
	}
	all := r.hold.revived
	r.hold.revived = nil
	slices.SortFunc(all, func(a, b revived) int { return cmp.Compare(a.since, b.since) })
	var before []revived
	for few := range slices.Chunk(all, askedAtOnce) {
		for _, c := range few {
			c.goOn()
		}
		for end := r.now() + answerTime; r.now() < end && slices.ContainsFunc(before, revived.asks); {
			time.Sleep(answerLook)
		}
		before = few
	}
}

// revived is a connection that Resume has taken over.
type revived struct {
	*conn
	since uint32 // how many milliseconds ago the socket has received data
}

// asks reports whether the pod has yet to tell how far it is.
func (c revived) asks() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.from.asking && c.stage.Load() == open
}

// reviveAtOnce is how many connections a goroutine revives in its turn. Each takes some ten microseconds, half of them
// in the kernel, and nobody hears pods meanwhile.
const reviveAtOnce = 128

// reviveAll revives the connections of slots, on all processors. Those that cannot go on are zero.
func (r *Relay) reviveAll(slots []uint32, here func(netip.Addr) bool) []revived {
	out := make([]revived, len(slots))
	var all sync.WaitGroup
	var next atomic.Int64
	work := func() {
		for {
			from := int(next.Add(reviveAtOnce)) - reviveAtOnce
			if from >= len(slots) {
				return
			}
			for i := from; i < min(from+reviveAtOnce, len(slots)); i++ {
				out[i], _ = r.revive(slots[i], r.hold.Found[slots[i]], here) // why it is lost helps nobody
			}
		}
	}
	for range min(runtime.GOMAXPROCS(0), len(slots)/reviveAtOnce) {
		all.Go(work)
	}
	work()
	all.Wait()
	return out
}

// ended reports whether a socket's streams have both ended. The Relay before may have forgotten such a connection and
// not had its socket released yet. What it had written last may still be on its way, and a reset would drop that.
func ended(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false
	}
	switch info.State {
	case unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING, unix.BPF_TCP_CLOSE:
		return true
	}
	return false
}

// revive returns the connection that is recorded in a slot, and enters it. fd stays the caller's when it fails.
func (r *Relay) revive(s uint32, fd int, here func(netip.Addr) bool) (back revived, err error) {
	f, live, ok := r.hold.Memory.Get(s)
	if !ok {
		return back, errNumbers
	}
	rec := readRecord(&f, &live)
	mtu, elsewhere := 0, false
	if !here(rec.key.Src.Netip()) {
		if mtu, elsewhere = r.o.Far(rec.key.Src); !elsewhere || !rec.joined {
			return back, fmt.Errorf("pod %s is not here", rec.key.Src)
		}
	}
	k, err := count(fd)
	if err != nil {
		return back, err
	}
	if rec.open && !rec.heard || !rec.heard && !rec.joined {
		return back, errNumbers
	}
	p, err := resume(&rec, &k)
	if err != nil {
		return back, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return back, err
	}
	c := newConn(r, rec.key, answering)
	if elsewhere {
		c.goFar(mtu)
	}
	c.restore(&rec, &p)
	c.recognize(fd)
	owner := r.o.Owner(rec.key.Src)
	if rec.joined {
		owner = Network(rec.key.Dst)
	}
	if c.account = r.bounds.resume(owner, rec.open); c.account == nil {
		return back, ErrTooMany
	}
	c.fd, c.slot = fd, s
	c.pumping.Store(busy) // until goOn: segments of the pod may come before
	if !r.add(c) {
		c.account.end(rec.open)
		c.r.behind.end(c.pretence)
		return back, ErrInUse
	}
	return revived{c, k.since}, nil
}

// restore sets the state of c to what was recorded.
func (c *conn) restore(rec *record, p *point) {
	c.joined, c.peeks, c.holding = rec.joined, true, held
	t, f := &c.to, &c.from
	t.una, t.nxt = rec.iss, rec.iss+1
	t.taken, t.low = t.nxt+p.consumed, 0
	c.next.Store(t.una)
	c.acked.Store(uint64(t.una) << 32)
	f.lastAck = t.una
	if !rec.heard {
		c.stage.Store(greeting)
		return
	}
	c.accept(rec.offer, rec.irs)
	if !rec.open {
		return
	}
	c.stage.Store(open)
	c.offered |= offerOpen
	t.una, t.nxt, t.asking, t.cut = t.taken, t.taken, true, rec.deaf
	c.hostEnd, c.hostEnded = rec.hostEnd, rec.hasHost
	c.next.Store(t.nxt)
	c.acked.Store(uint64(t.una) << 32)
	f.lastAck, f.most, f.asking, f.deaf = t.una, p.most, true, rec.deaf
	f.next += p.written
	if f.fin = p.shut; p.shut {
		f.next++
		c.shut.Store(true)
	}
	c.publish()
}

// hurry has a far pod send again at once what was lost in the tunnel while nobody read it. A kernel waits for twice as
// long after each repetition. An ICMP error about the first segment that is not acknowledged says that the way was
// broken, and takes one of these steps back (RFC 6069 4.1: code 0). It does nothing to a connection that waits for
// nothing, and the next acknowledgement has it forgotten. What a pod of this node has sent lies in its TAP, and is not
// lost.
func (c *conn) hurry() {
	h := packet.TCPHeader{Seq: uint32(c.received.Load() >> 32), Flags: packet.ACK}
	head, vnet := packet.PutTCP(c.to.head[:], &c.key, &h, 0, 0)
	var p packet.Packet
	if p.ParseIP(c.to.head[:head]) != packet.Good {
		return
	}
	p.VNet = vnet
	var ip [1280]byte // as PutICMPError wants it
	if n := packet.PutICMPError(ip[:], &p, packet.NetUnreachable, c.key.Dst, 0); n > 0 {
		c.r.o.Send(ip[:n], packet.VNetHdr{})
	}
}

// goOn begins to carry a connection that was restored.
func (c *conn) goOn() {
	if c.stage.Load() != open {
		c.timer.set(openTimeout)
	} else if c.far != nil {
		c.hurry()
	}
	err := c.watch(0)
	c.pumping.Store(idle)
	if err != nil {
		c.kill(aborted)
		return
	}
	c.note(kepts)
	c.pump()
}
