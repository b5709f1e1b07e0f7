package tcprelay

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const (
	// window is how much of what a pod says is kept while the socket takes no more.
	window = 1 << 20
	// maxWindowField is the window of a segment whose window is not scaled.
	maxWindowField = 65535
	// ackDelay is how long an acknowledgement waits for a reply to travel with. RFC 9293 3.8.6.3 allows 500 ms; this is
	// Linux' TCP_DELACK_MIN.
	ackDelay = 40 * time.Millisecond
	// maxResets is how often a pod is told to forget an older connection.
	maxResets = 3
	// maxEarly bounds the segments behind a hole; a window of the smallest that are worth it.
	maxEarly = 1024
)

// podStream is what the pod says, guarded by conn.mu.
type podStream struct {
	next               uint32 // the number that is expected
	scales             bool
	podScale, ourScale uint8
	fin                bool // it was said to the end

	resets int // of older connections

	early    []early // what came before its turn, because something was lost; by number
	earlyLen int     // bytes in them, which may be the same ones several times

	gathered []part // in the present turn, to be written together

	// The bytes that the socket did not take yet.
	kept    []*chunk
	keptLen int
	short   bool // there was no memory for more
	deaf    bool // the socket takes nothing any more: what the pod says is lost, and not acknowledged

	// What the pod acknowledged last.
	lastAck, lastWindow uint32
	dups                int

	// A pod that asks and waits for the reply gets its acknowledgement with it. replies are those sent before its last
	// word.
	due      time.Duration // when an acknowledgement must leave; 0 for none
	replies  uint32
	converse bool
}

// early is a segment behind a hole.
type early struct {
	seq uint32
	b   []byte
	fin bool
}

// What is to be done when mu is free again.
type todo uint8

const (
	answer todo = 1 << iota // acknowledge
	work                    // pump
)

// receive takes a segment of the pod's. It is false when the connection is over.
func (c *conn) receive(p *packet.Packet, turn *Turn) bool {
	c.mu.Lock()
	if c.stage.Load() == dead {
		c.mu.Unlock()
		return false
	}
	do := c.take(p, turn)
	c.mu.Unlock()
	if !c.heard.Load() {
		c.heard.Store(true)
	}
	if do&answer != 0 {
		c.acknowledge()
	}
	if do&work != 0 {
		c.pump()
	}
	return true
}

// take is RFC 9293 3.10.7 for what a pod can send here.
func (c *conn) take(p *packet.Packet, turn *Turn) todo {
	h := p.IP[p.L4:p.Payload]
	seq, ack, flags := be.Uint32(h[4:]), be.Uint32(h[8:]), p.TCPFlags
	f := &c.from
	switch stage := c.stage.Load(); {
	case stage == greeting:
		return c.greeted(p, seq, ack)
	case flags&packet.RST != 0:
		// Exactly the expected number, or any in the window: who sends it is the pod and nobody else.
		if seq-f.next > window {
			return 0
		}
		if f.fin { // what it said is on its way still, to a client that may be slow
			c.note(podDeaf)
		} else {
			c.note(podGone)
		}
		return work
	case stage == connecting: // its SYN again: it waits as long as the pod asks
		c.note(asked)
		return work
	case flags&packet.SYN != 0:
		if stage == answering {
			return 0 // the timer repeats the answer
		}
		return answer
	case flags&packet.ACK == 0:
		return 0
	}
	if ahead(ack, c.next.Load()) {
		return answer
	}
	payload := p.IP[p.Payload:]
	do := c.takeAck(ack, uint32(be.Uint16(h[14:]))<<f.podScale, len(payload) == 0 && flags&packet.FIN == 0)
	if len(payload) == 0 && flags&packet.FIN == 0 {
		if seq == f.next-1 && f.keptLen == 0 && !f.short && c.stage.Load() == open {
			c.note(probed) // of an idle connection (RFC 9293 3.8.4)
			return do | work
		}
		if seq != f.next {
			do |= answer // a probe of a closed window
		}
		return do
	}
	if f.deaf {
		return do
	}
	fin := flags&packet.FIN != 0
	bulk := !fin && p.Buf != nil && c.bulk(seq, len(payload))
	if bulk {
		if turn.gather(c, p); len(f.gathered) < maxGathered {
			return do
		}
	}
	if len(f.gathered) > 0 {
		do |= answer
		if !c.flush(turn) {
			c.deafen()
			return do | work
		}
	}
	if bulk {
		return do
	}
	return do | c.takeData(seq, payload, fin)
}

// ahead reports whether sequence number a comes after b.
func ahead(a, b uint32) bool { return int32(a-b) > 0 }

// greeted is for what comes in answer to our SYN.
func (c *conn) greeted(p *packet.Packet, seq, ack uint32) todo {
	const synAck = packet.SYN | packet.ACK
	switch {
	case p.TCPFlags&packet.ACK == 0:
		return 0
	case ack != c.next.Load():
		// It remembers an older connection, in TIME_WAIT for instance (RFC 9293 3.10.7.3, first).
		if p.TCPFlags&packet.RST != 0 || c.from.resets == maxResets {
			return 0
		}
		c.from.resets++
		c.forgotten.Store(ack)
		c.note(stale)
		return work
	case p.TCPFlags&packet.RST != 0:
		c.note(podGone)
		return work
	case p.TCPFlags&synAck != synAck:
		return 0
	}
	h := p.IP[p.L4:p.Payload]
	c.accept(readOffer(h[20:], p.Tuple.Src.Is4()), seq)
	c.opened()
	return answer | c.takeAck(ack, uint32(be.Uint16(h[14:])), true)
}

func (c *conn) opened() {
	c.publish()
	c.stage.Store(open)
	c.account.opened()
}

// takeAck notes what the pod acknowledges. bare says that the segment has nothing else.
func (c *conn) takeAck(ack, wnd uint32, bare bool) todo {
	f := &c.from
	if ahead(f.lastAck, ack) {
		return 0
	}
	if c.stage.Load() == answering {
		if ack != c.next.Load() {
			return 0
		}
		c.opened()
	}
	full := wnd == 0 && ack != c.next.Load()
	if full { // it lives, and will make room when it likes (RFC 9293 3.8.6.1)
		c.note(podFull)
	}
	if ack == f.lastAck && wnd == f.lastWindow {
		if full {
			return work
		}
		if !bare || ack == c.next.Load() {
			return 0
		}
		if f.dups++; f.dups == 3 { // RFC 5681 3.2
			c.note(lostOne)
			return work
		}
		return 0
	}
	f.lastAck, f.lastWindow, f.dups = ack, wnd, 0
	c.acked.Store(uint64(ack)<<32 | uint64(wnd))
	return work
}

// takeData takes what of a segment is new, and what waited for it.
func (c *conn) takeData(seq uint32, b []byte, fin bool) todo {
	f := &c.from
	if c.stage.Load() != open || f.fin {
		return answer
	}
	if ahead(seq, f.next) {
		c.hold(seq, b, fin)
		return answer
	}
	before := f.next
	if !c.takeNext(seq, b, fin) {
		c.deafen()
		return work
	}
	late := len(f.early) > 0
	for len(f.early) > 0 && !ahead(f.early[0].seq, f.next) {
		e := f.early[0]
		f.early = f.early[1:]
		f.earlyLen -= len(e.b)
		c.account.give(len(e.b))
		if !c.takeNext(e.seq, e.b, e.fin) {
			c.deafen()
			return work
		}
	}
	c.publish()
	if f.next == before || late || f.fin {
		return answer | c.finish()
	}
	return c.ackNow(int(f.next - before))
}

// takeNext takes what is new of a segment that leaves no hole, as far as there is room for it. It is false when the
// socket takes nothing any more.
func (c *conn) takeNext(seq uint32, b []byte, fin bool) bool {
	f := &c.from
	old := int(f.next - seq)
	if old > len(b) || f.fin {
		return true
	}
	b = b[old:]
	if room := window - f.keptLen; len(b) > room {
		b, fin = b[:room], false
	}
	n, good := c.write(b)
	if !good {
		return false
	}
	f.next += uint32(n)
	if fin && n == len(b) {
		f.next++
		f.fin = true
	}
	return true
}

// hold keeps a segment until what is missing before it comes, within the window, and as far as there is memory.
func (c *conn) hold(seq uint32, b []byte, fin bool) {
	f := &c.from
	if int(seq-f.next)+len(b) > window-f.keptLen || len(f.early) >= maxEarly || f.earlyLen+len(b) > window {
		return
	}
	i, _ := slices.BinarySearchFunc(f.early, seq, func(e early, seq uint32) int { return int(int32(e.seq - seq)) })
	if i < len(f.early) && f.early[i].seq == seq && len(f.early[i].b) >= len(b) {
		return // it came twice
	}
	if !c.account.take(len(b)) {
		return
	}
	f.early = slices.Insert(f.early, i, early{seq, slices.Clone(b), fin})
	f.earlyLen += len(b)
}

// ackNow decides about the acknowledgement of n bytes: at once, unless the pod seems to wait for a reply that will take
// it along.
func (c *conn) ackNow(n int) todo {
	f := &c.from
	replies := c.replies.Load()
	f.converse = f.converse || replies != f.replies
	f.replies = replies
	if n >= c.to.mss || !f.converse {
		f.due = 0
		return answer
	}
	f.due = c.r.now() + ackDelay
	c.timer.set(ackDelay)
	return 0
}

// late reports whether an acknowledgement that waited must leave now.
func (f *podStream) late(now time.Duration, c *conn) bool {
	if f.due == 0 {
		return false
	}
	if now < f.due {
		c.timer.set(f.due - now)
		return false
	}
	f.due = 0
	if c.to.told.Load() == f.next {
		return false
	}
	f.converse = false
	return true
}

// publish makes what segments of ours say of the pod's stream what it is now.
func (c *conn) publish() {
	f := &c.from
	room := window - f.keptLen
	if f.short {
		room = 0
	}
	c.received.Store(uint64(f.next)<<32 | uint64(min(room>>f.ourScale, maxWindowField)))
}

// write gives b to the socket, keeps what it does not take as far as there is memory, and tells how much of b that was.
// It is false when the socket takes nothing any more.
func (c *conn) write(b []byte) (taken int, good bool) {
	f, size := &c.from, len(b)
	for len(b) > 0 && f.keptLen == 0 {
		n, errno := send(c.fd, b)
		switch errno {
		case 0:
			b = b[n:]
			continue
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			c.arm(poll.Out)
		default:
			return 0, false
		}
		break
	}
	return size - len(b) + c.keep(b), true
}

// keep keeps b for later, as far as there is memory, and tells how much it did.
func (c *conn) keep(b []byte) (kept int) {
	f := &c.from
	for len(b) > 0 {
		if n := len(f.kept); n == 0 || f.kept[n-1].used == chunkSize {
			k := c.newChunk()
			if k == nil {
				f.short = true // until the socket takes what there is
				break
			}
			f.kept = append(f.kept, k)
		}
		k := f.kept[len(f.kept)-1]
		n := copy(k.buf[k.used:], b)
		k.used += n
		b = b[n:]
		kept += n
	}
	f.keptLen += kept
	return kept
}

// drain gives the socket what was kept, and tells the pod of the room that makes.
func (c *conn) drain() {
	c.mu.Lock()
	f := &c.from
	if c.stage.Load() == dead || f.keptLen == 0 && !f.short {
		c.mu.Unlock()
		return
	}
	before := f.keptLen
	f.short = false
	for f.keptLen > 0 {
		k := f.kept[0]
		n, errno := send(c.fd, k.buf[k.done:k.used])
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			if errno == unix.EAGAIN {
				c.arm(poll.Out)
				break
			}
			c.deafen()
			c.mu.Unlock()
			return // to who pumps
		}
		k.done += n
		f.keptLen -= n
		if k.done == k.used {
			c.free(k)
			f.kept = append(f.kept[:0], f.kept[1:]...)
		}
	}
	c.publish()
	// Small steps of the window are not worth a segment (RFC 9293 3.8.6.2.2), unless the pod can say next to nothing. A
	// pod that ended its stream may be gone altogether.
	tell := !f.fin && (f.keptLen == 0 || before-f.keptLen >= window/4)
	if f.keptLen == 0 {
		c.finish()
	}
	c.mu.Unlock()
	if tell {
		c.acknowledge()
	}
}

// finish ends the socket's side of the pod's stream when everything was written.
func (c *conn) finish() todo {
	if !c.from.fin || c.from.keptLen > 0 || c.shut.Load() {
		return 0
	}
	_ = unix.Shutdown(c.fd, unix.SHUT_WR) // it fails where the far end was faster, and that is heard of by reading
	c.shut.Store(true)
	return work
}

// deafen notes that the socket takes nothing any more, and gives up what it did not take. What it has is still brought
// to the pod, which is reset then: a far end that hangs up may have answered before. The caller holds mu, and has who
// pumps see to it.
func (c *conn) deafen() {
	c.releaseFrom()
	c.from.deaf = true
	c.note(hostDeaf)
}

// releaseFrom gives the memory of the pod's stream back.
func (c *conn) releaseFrom() {
	f := &c.from
	for _, k := range f.kept {
		c.free(k)
	}
	c.account.give(f.earlyLen)
	f.kept, f.keptLen, f.early, f.earlyLen, f.gathered = nil, 0, nil, 0, nil
}
