package tcprelay

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// window is how many bytes of a pod's stream are kept, and not acknowledged, while the socket accepts no more.
	window = 1 << 20
	// maxWindowField is the largest value of a segment's window field.
	maxWindowField = 65535
	// ackDelay is how long an acknowledgement waits to be sent together with a reply. RFC 9293 3.8.6.3 allows 500 ms;
	// this is TCP_DELACK_MIN of Linux.
	ackDelay = 40 * time.Millisecond
	// maxResets is how often one connection tells the pod to forget an older connection.
	maxResets = 3
	// maxEarly bounds the number of segments kept behind a hole: about a window of the smallest ones that are worth
	// keeping.
	maxEarly = 1024
)

// podStream is the state of the pod's stream, guarded by conn.mu.
type podStream struct {
	next               uint32 // the sequence number that is expected next
	first              uint32 // the one of the pod's first byte
	scales, sacks      bool
	podScale, ourScale uint8
	fin                bool // the stream has ended, and all of it was received

	resets int // sent to older connections

	early    []early // segments after a hole, which a lost one left; in the order of their numbers
	earlyLen int     // the sum of their sizes; overlapping bytes count more than once

	gathered []part // payloads of the present turn, to be written at once

	// The bytes that the socket has not accepted yet.
	kept    []*chunk
	keptLen int
	drained int  // bytes that the socket has accepted later, and of which the pod was not told
	stuck   bool // the pod has repeated what is kept
	short   bool // there was no memory to keep more
	lost    bool // the pod's reset came without bytes before it
	deaf    bool // the socket accepts no more data; what the pod sends is dropped and not acknowledged

	// The pod's last acknowledgement and window, the number of the segment that announced the window, and how many
	// duplicates of it came.
	lastAck, lastWindow, windowSeq uint32
	dups                           int

	// Of a connection that the Relay before had begun: whether the pod has yet to tell how far it is, and the highest
	// number that it may acknowledge besides those that we have sent; 0 for none.
	asking bool
	most   uint32

	// A pod that sends a request and waits for the reply gets the acknowledgement with the reply. replies is the value
	// of conn.replies when the pod's last data came. converse says that the pod has been sent replies between its
	// requests.
	due      time.Duration // when an acknowledgement must leave; 0 for none
	replies  uint32
	converse bool
}

// early is a segment after a hole in the stream.
type early struct {
	seq uint32
	b   []byte
	fin bool
}

// end returns the number behind the segment's bytes.
func (e *early) end() uint32 { return e.seq + uint32(len(e.b)) }

// size returns how much memory the segment takes: its bytes, its place in early, and what the allocator rounds up.
func (e *early) size() int { return len(e.b) + 64 }

// todo is what has to be done after mu is released.
type todo uint8

const (
	answer todo = 1 << iota // acknowledge
	work                    // pump
)

// receive handles a segment from the pod. It returns false when the connection is over.
func (c *conn) receive(p *packet.Packet, turn *Turn) bool {
	c.mu.Lock()
	if c.stage.Load() == dead {
		c.mu.Unlock()
		return c.left.Load()
	}
	do := c.take(p, turn)
	c.mu.Unlock()
	if !c.heard.Load() {
		c.heard.Store(true)
	}
	if c.far != nil {
		c.workLater(do)
		return true
	}
	if do&answer != 0 {
		c.acknowledge()
	}
	if do&work != 0 {
		c.pump()
	}
	return true
}

// workLater does what has to be done in another goroutine.
func (c *conn) workLater(do todo) {
	if do&answer != 0 {
		c.note(owesAck)
	}
	if do != 0 {
		c.pumpLater()
	}
}

// take handles a segment by the rules of RFC 9293 3.10.7, as far as a pod can meet them here. The caller holds mu.
func (c *conn) take(p *packet.Packet, turn *Turn) todo {
	h := p.IP[p.L4:p.Payload]
	seq, ack, flags := be.Uint32(h[4:]), be.Uint32(h[8:]), p.TCPFlags
	f := &c.from
	switch stage := c.stage.Load(); {
	case stage == greeting:
		return c.greeted(p, seq, ack)
	case flags&packet.RST != 0:
		if !c.mayReset(seq) {
			return 0
		}
		if flags&packet.ACK != 0 && c.mayKnow(ack) && ahead(ack, f.lastAck) { // it has taken what untouched asks about
			f.lastAck = ack
			c.acked.Store(uint64(ack)<<32 | uint64(f.lastWindow))
		}
		f.lost = ahead(seq, f.next)
		if f.fin { // the pod's data may still be on its way to a slow client
			c.note(podDeaf)
		} else {
			c.note(podGone)
		}
		return work
	case stage == connecting: // the SYN again: the conn waits as long as the pod repeats it
		c.note(asked)
		return work
	case flags&packet.SYN != 0:
		if stage == answering {
			return 0 // the timer repeats the SYN-ACK
		}
		return answer
	case flags&packet.ACK == 0:
		return 0
	}
	if !c.mayKnow(ack) {
		return answer
	}
	payload := p.IP[p.Payload:]
	do := c.takeAck(seq, ack, uint32(be.Uint16(h[14:]))<<f.podScale, len(payload) == 0 && flags&packet.FIN == 0)
	if c.far != nil && len(h) > 20 {
		do |= c.takeSACK(h[20:])
	}
	if len(payload) == 0 && flags&packet.FIN == 0 {
		if seq == f.next-1 && f.keptLen == 0 && !f.short && c.stage.Load() == open {
			c.note(probed) // a keep-alive probe of an idle connection (RFC 9293 3.8.4)
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
	bulk := !fin && p.Buf != nil && c.far == nil && c.bulk(seq, len(payload))
	if bulk {
		if turn.gather(c, p); len(f.gathered) < maxGathered {
			return do
		}
	}
	if len(f.gathered) > 0 {
		told, good := c.flush(turn)
		if told {
			do |= answer
		}
		if !good {
			c.deafen()
			return do | work
		}
	}
	if bulk {
		return do
	}
	return do | c.takeData(seq, payload, fin)
}

// mayReset reports whether a reset with this number ends the connection. RFC 5961 3.2 demands exactly the expected
// number. Any number in the window is accepted here, because only the pod itself can send the segment. A pod without
// room resets at what it knows as acknowledged. That lies before what is kept, and before what the socket has accepted
// since the pod was told.
func (c *conn) mayReset(seq uint32) bool {
	acked := uint32(c.received.Load() >> 32)
	return seq-(acked-window) <= c.from.next-acked+2*window
}

// ahead reports whether sequence number a comes after b.
func ahead(a, b uint32) bool { return int32(a-b) > 0 }

// mayKnow reports whether the pod may acknowledge a number: we or the Relay before have sent the one before it.
func (c *conn) mayKnow(ack uint32) bool {
	f := &c.from
	if next := c.next.Load(); !ahead(ack, next) {
		if f.most != 0 && !ahead(f.most, next) {
			f.most = 0
		}
		return true
	}
	return f.most != 0 && !ahead(ack, f.most)
}

// greeted handles a segment that answers our SYN.
func (c *conn) greeted(p *packet.Packet, seq, ack uint32) todo {
	const synAck = packet.SYN | packet.ACK
	switch {
	case p.TCPFlags&packet.ACK == 0:
		return 0
	case ack != c.next.Load():
		// The pod still has an older connection, in TIME_WAIT for instance (RFC 9293 3.10.7.3, first check).
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
	return answer | c.takeAck(seq, ack, uint32(be.Uint16(h[14:])), true)
}

func (c *conn) opened() {
	c.offered |= offerOpen
	c.remember(liveOffer, c.offered)
	c.publish()
	c.stage.Store(open)
	c.account.opened()
	if c.told.Answered != nil {
		c.told.Answered(true)
	}
}

// takeAck records what the pod acknowledges with the segment at seq. bare says that the segment has neither payload nor
// FIN.
func (c *conn) takeAck(seq, ack, wnd uint32, bare bool) todo {
	f := &c.from
	if ahead(f.lastAck, ack) {
		return 0
	}
	if f.asking {
		f.asking, f.windowSeq = false, seq-1
		c.note(found)
		return work | c.takeAck(seq, ack, wnd, bare)
	}
	if c.stage.Load() == answering {
		if ack != c.next.Load() {
			return 0
		}
		c.opened()
	}
	if ack == f.lastAck && wnd != f.lastWindow && !f.announces(seq, wnd) {
		return 0
	}
	full := wnd == 0 && ack != c.next.Load()
	if full { // the pod lives, and makes room when it likes (RFC 9293 3.8.6.1)
		c.note(podFull)
	}
	if ack == f.lastAck && wnd == f.lastWindow {
		f.windowSeq = later(f.windowSeq, seq)
		if full {
			return work
		}
		if !bare || ack == c.next.Load() || c.far != nil && f.sacks { // then SACKs tell
			return 0
		}
		if f.dups++; f.dups == 3 { // RFC 5681 3.2
			c.note(lostOne)
			return work
		}
		return 0
	}
	f.lastAck, f.lastWindow, f.windowSeq, f.dups = ack, wnd, seq, 0
	if c.far != nil {
		c.far.board.Ack(ack)
	}
	c.acked.Store(uint64(ack)<<32 | uint64(wnd))
	return work
}

// announces reports whether the window of a segment that acknowledges what was acknowledged before is to be believed
// (RFC 9293 3.10.7.4): a segment that was overtaken may have an older one. Of segments with one number the larger
// window is the newer one, as receivers do not take back what they have announced, unless they have no memory at all.
func (f *podStream) announces(seq, wnd uint32) bool {
	if seq == f.windowSeq {
		return wnd > f.lastWindow || wnd == 0
	}
	return ahead(seq, f.windowSeq)
}

// takeData accepts what is new in a segment, and the kept segments that follow it without a hole.
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
		f.earlyLen -= e.size()
		c.account.give(e.size())
		if !c.takeNext(e.seq, e.b, e.fin) {
			c.deafen()
			return work
		}
	}
	do := c.finish()
	told := c.publish()
	if f.next == before && f.keptLen > 0 {
		// The pod repeats what waits here. With no window it does so as a probe, and gives up nothing.
		f.stuck = true
		c.publish()
	}
	switch {
	case f.next == before || late || f.fin:
		return do | answer
	case !told:
		return do // an acknowledgement would be a duplicate
	}
	return do | c.ackNow(int(f.next-before))
}

// takeNext accepts what is new in a segment that leaves no hole, as far as there is room. It returns false when the
// socket accepts no more data.
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

// hold keeps a segment until the missing data before it arrives. It does so within the window, and as far as there is
// memory.
func (c *conn) hold(seq uint32, b []byte, fin bool) {
	f := &c.from
	e := early{seq, b, fin}
	if int(seq-f.next)+len(b) > window-f.keptLen || len(f.early) >= maxEarly || f.earlyLen+e.size() > window {
		return
	}
	i, _ := slices.BinarySearchFunc(f.early, seq, func(e early, seq uint32) int { return int(int32(e.seq - seq)) })
	if i < len(f.early) && f.early[i].seq == seq && len(f.early[i].b) >= len(b) {
		return // it came before
	}
	if !c.account.take(e.size()) {
		return
	}
	if c.far != nil {
		c.far.latest = seq
	}
	e.b = slices.Clone(b)
	f.early = slices.Insert(f.early, i, e)
	f.earlyLen += e.size()
}

// ackNow decides when n bytes are acknowledged: at once, unless the pod seems to wait for a reply that will carry the
// acknowledgement.
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

// late reports whether a delayed acknowledgement must be sent now.
func (f *podStream) late(now time.Duration, c *conn) bool {
	if f.due == 0 {
		return false
	}
	if now < f.due {
		c.timer.set(f.due - now)
		return false
	}
	f.due = 0
	if c.to.told.Load() == uint32(c.received.Load()>>32) {
		return false
	}
	f.converse = false
	return true
}

// publish updates the acknowledgement and window that our segments carry, and reports whether they have changed. Only
// what the socket has accepted is acknowledged: what is kept here is lost with this process.
func (c *conn) publish() (changed bool) {
	f := &c.from
	got, room := f.next-uint32(f.keptLen), window
	if f.fin && !c.shut.Load() {
		got--
	}
	if f.short || f.stuck {
		room = 0
	}
	word := uint64(got)<<32 | uint64(min(room>>f.ourScale, maxWindowField))
	return c.received.Swap(word) != word
}

// finish shuts the socket down for writing when everything of an ended stream was written.
func (c *conn) finish() todo {
	if !c.from.fin || c.from.keptLen > 0 || c.shut.Load() {
		return 0
	}
	c.remember(livePodEnd, known|uint64(c.from.next-1))
	_ = unix.Shutdown(c.fd, unix.SHUT_WR) // fails if the far end was faster, which reading finds out
	c.shut.Store(true)
	return work
}

// deafen records that the socket accepts no more data, and drops what it did not accept. What the socket has read is
// still sent to the pod, and then the pod is reset, because a far end that hangs up may have answered before. The
// caller holds mu, and pumps after releasing it.
func (c *conn) deafen() {
	c.releaseFrom()
	c.remember(liveDeaf, 1)
	c.from.deaf = true
	c.note(hostDeaf)
}

// releaseFrom releases the memory of the pod's stream.
func (c *conn) releaseFrom() {
	f := &c.from
	for _, k := range f.kept {
		c.free(k)
	}
	c.account.give(f.earlyLen)
	f.kept, f.keptLen, f.early, f.earlyLen, f.gathered = nil, 0, nil, 0, nil
}
