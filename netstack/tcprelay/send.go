package tcprelay

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/alive"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const (
	// turn is how many superframes of one connection are sent before others get theirs.
	turn = 32
	// A timeout begins at minTimeout, Linux' TCP_RTO_MIN, and doubles up to maxTimeout; a pod that acknowledges nothing
	// for giveUp is given up. openTimeout is for connections that do not come about, since the pod asked last.
	minTimeout  = 200 * time.Millisecond
	synTimeout  = time.Second
	maxTimeout  = 20 * time.Second
	giveUp      = 2 * time.Minute
	openTimeout = 20 * time.Second
	// maxGulp is how many superframes are read at once.
	maxGulp = 8
	// maxFlight bounds what is kept for a pod that does not acknowledge it, whatever window it announces.
	maxFlight = 4 << 20
	// memoryWait is how long it takes until it is looked for memory again.
	memoryWait = 20 * time.Millisecond
	// noMemory is a read for which there was none.
	noMemory = unix.ENOMEM
	// small is the room that makes it worth to read into the rest of a chunk.
	small = 16 << 10
)

// hostStream is what the host's socket says, in the hands of the one that pumps.
type hostStream struct {
	una, nxt   uint32 // the oldest number that is not acknowledged, and the next one (RFC 9293 3.3.1)
	room       uint32 // the pod's window
	mss, limit int    // what a segment and a superframe carry at most
	fin        bool   // the stream ended, and the pod was told: with nxt-1
	cut        bool   // the socket takes nothing any more; when it has nothing any more either, the pod is reset
	recover    uint32 // where nxt was when something was lost
	recovering bool

	flows bool // there was as much as could be read

	segs []sent // not acknowledged yet, oldest first
	last *chunk // where the next segment may go

	timeout  time.Duration // the present one, doubled from time to time
	resendAt time.Duration // 0: there is nothing to wait for
	deadline time.Duration // when it is given up

	far    alive.Question // the pod's, whether the far end lives
	lookAt time.Duration  // when it is looked whether the pod lives
	silent int            // looks for which nothing had come from it

	told atomic.Uint32 // the acknowledgement that our last segment with data took along
	head [headroom]byte
}

// sent is a segment's payload.
type sent struct {
	k      *chunk
	off, n int // in k.buf
	seq    uint32
}

// carry reads what the socket has and sends it, as far as the pod's window lets it. The error is the socket's.
func (c *conn) carry() unix.Errno {
	t := &c.to
	for done := 0; done < turn; {
		if t.fin {
			return 0
		}
		flight := t.nxt - t.una
		room := int(t.room) - int(flight)
		if room <= 0 || room < t.mss && flight > 0 {
			c.blocked(flight)
			return 0 // an acknowledgement goes on
		}
		limited, wait := c.pace()
		if wait > 0 {
			c.timer.set(wait)
			return 0
		}
		asked, n, errno := c.read(room, !limited)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN && !t.cut:
			c.arm(poll.In)
			return 0
		case errno == noMemory:
			c.timer.set(memoryWait)
			return 0
		case errno != 0:
			return errno
		case n == 0 && t.cut:
			return unix.ECONNRESET
		case n == 0:
			c.bye()
			return 0
		}
		if t.flows = n == asked; !t.flows {
			break // that was all
		}
		done += (n + t.limit - 1) / t.limit
	}
	c.arm(poll.In)
	return 0
}

// pace asks whether the pod is limited, and how long it has to be waited before the next superframe. A sender without
// congestion control would otherwise lose nearly all that it sends beyond the limit.
func (c *conn) pace() (limited bool, wait time.Duration) {
	if c.r.o.Pace == nil {
		return false, 0
	}
	return c.r.o.Pace(c.key.Src)
}

// read reads the socket once, up to room bytes of what was asked for, and sends what it had: one superframe, or, if it
// may, many.
func (c *conn) read(room int, many bool) (asked, n int, errno unix.Errno) {
	t := &c.to
	if many && t.flows && room >= 2*t.limit {
		return c.gulp(min(room/t.limit, maxGulp))
	}
	b := c.space(min(room, t.limit))
	if b == nil {
		return 0, 0, noMemory
	}
	n, errno = recv(c.fd, b)
	if n <= 0 || errno != 0 {
		c.tidy()
		return len(b), 0, errno
	}
	c.say(n, n < len(b))
	return len(b), n, 0
}

// gulp reads several superframes at once: each read has the far end told of the room it made, and costs it a segment.
func (c *conn) gulp(count int) (asked, n int, errno unix.Errno) {
	t := &c.to
	var ks [maxGulp]*chunk
	var iov [maxGulp]unix.Iovec
	for i := range count {
		if ks[i] = c.newChunk(); ks[i] == nil {
			count = i
			break
		}
		iov[i].Base = &ks[i].buf[headroom]
		iov[i].SetLen(t.limit)
	}
	if count == 0 {
		return 0, 0, noMemory
	}
	n, errno = readv(c.fd, iov[:count])
	if errno != 0 {
		n = 0
	}
	left := n
	for _, k := range ks[:count] {
		if left == 0 {
			c.free(k)
			continue
		}
		part := min(left, t.limit)
		left -= part
		c.tidy()
		t.last = k
		c.say(part, left == 0 && n < count*t.limit)
	}
	return count * t.limit, n, errno
}

// space is where to read the next up to n bytes, with room for headers before; nil when there is no memory.
func (c *conn) space(n int) []byte {
	t := &c.to
	if t.last == nil || chunkSize-t.last.used < headroom+min(n, small) {
		k := c.newChunk()
		if k == nil {
			return nil
		}
		t.last = k
	}
	off := t.last.used + headroom
	return t.last.buf[off:min(off+n, chunkSize)]
}

// tidy gives an unused chunk back.
func (c *conn) tidy() {
	if t := &c.to; t.last != nil && t.last.refs == 0 {
		c.free(t.last)
		t.last = nil
	}
}

// say sends the n bytes that were read into space.
func (c *conn) say(n int, push bool) {
	t := &c.to
	k := t.last
	s := sent{k, k.used + headroom, n, t.nxt}
	k.used += headroom + n
	k.refs++
	t.segs = append(t.segs, s)
	t.nxt += uint32(n)
	c.next.Store(t.nxt) // before received is looked at
	if t.resendAt == 0 {
		c.await(minTimeout)
	}
	c.replies.Add(1)
	c.sendData(&s, push)
}

func (c *conn) sendData(s *sent, push bool) {
	h := packet.TCPHeader{Seq: s.seq, Flags: packet.ACK}
	if push {
		h.Flags |= packet.PSH
	}
	c.fresh(&h)
	c.emit(s.k.buf[s.off-packet.TCPHeadLen(&c.key.Src):], s.n, &h)
}

// fresh fills in what we acknowledge.
func (c *conn) fresh(h *packet.TCPHeader) {
	got := c.received.Load()
	h.Ack, h.Window = uint32(got>>32), uint16(got)
	c.to.told.Store(h.Ack)
}

// bye tells the pod that the socket's stream ended.
func (c *conn) bye() {
	t := &c.to
	t.fin = true
	t.nxt++
	c.next.Store(t.nxt)
	c.await(minTimeout)
	c.sendFin()
	c.arm(0) // the far end may reset the connection still
}

func (c *conn) sendFin() {
	h := packet.TCPHeader{Seq: c.to.nxt - 1, Flags: packet.FIN | packet.ACK}
	c.fresh(&h)
	c.emit(c.to.head[:], 0, &h)
}

// greet sends our SYN, or the SYN-ACK.
func (c *conn) greet() {
	t := &c.to
	c.next.Store(t.nxt)
	h := packet.TCPHeader{Seq: t.una, Flags: packet.SYN, Window: maxWindowField}
	var options [8]byte
	scales := true
	if c.stage.Load() == answering {
		h.Flags |= packet.ACK
		c.fresh(&h)
		scales = c.from.scales // does not change any more
	}
	h.Options = putOffer(options[:0], c.r.o.MTU()-packet.TCPHeadLen(&c.key.Src), scales)
	if t.resendAt == 0 {
		t.timeout = synTimeout
		t.resendAt = c.r.now() + t.timeout
		c.timer.set(t.timeout)
	}
	c.emit(t.head[:], 0, &h)
}

// takeAcks notes what the pod acknowledged since.
func (c *conn) takeAcks() {
	t := &c.to
	acked := c.acked.Load()
	ack := uint32(acked >> 32)
	opened := t.room == 0 && uint32(acked) > 0
	t.room = min(uint32(acked), maxFlight)
	if ack == t.una && !opened {
		return
	}
	t.una = ack
	done := 0
	for i := range t.segs {
		s := &t.segs[i]
		if over := ack - s.seq; over < uint32(s.n) || ahead(s.seq, ack) {
			if !ahead(s.seq, ack) { // the headers of what is left may be written over what is not
				s.off, s.n, s.seq = s.off+int(over), s.n-int(over), ack
			}
			break
		}
		if s.k.refs--; s.k.refs == 0 && s.k != t.last {
			c.free(s.k)
		}
		done++
	}
	t.segs = append(t.segs[:0], t.segs[done:]...)
	if len(t.segs) == 0 && t.last != nil {
		c.free(t.last)
		t.last = nil
	}
	if t.una == t.nxt {
		t.resendAt, t.recovering = 0, false
		return
	}
	c.await(minTimeout)
	if t.recovering {
		if t.recovering = ahead(t.recover, ack); t.recovering {
			c.sendFirst() // RFC 6582: a partial acknowledgement says that the next one is missing, too
		}
	}
}

// await begins to wait for an acknowledgement, or begins again because there was one.
func (c *conn) await(d time.Duration) {
	t := &c.to
	now := c.r.now()
	t.timeout, t.resendAt, t.deadline = d, now+d, now+giveUp
	c.timer.set(d)
}

// blocked sees to it that a pod that announced no window is asked again: its next announcement could be lost.
func (c *conn) blocked(flight uint32) {
	if flight == 0 && c.to.resendAt == 0 {
		c.await(minTimeout)
	}
}

// overdue looks whether a timeout has passed and repeats what was lost. It is false when the pod is given up.
func (c *conn) overdue() bool {
	t := &c.to
	now := c.r.now()
	stage := c.stage.Load()
	if stage != open && now >= t.deadline {
		return false
	}
	if stage == connecting || t.resendAt == 0 {
		if stage != open {
			c.timer.set(t.deadline - now)
		}
		return true
	}
	if now < t.resendAt {
		c.timer.set(t.resendAt - now)
		return true
	}
	if t.una != t.nxt && now >= t.deadline {
		return false
	}
	t.timeout = min(2*t.timeout, maxTimeout)
	t.resendAt = now + t.timeout
	c.timer.set(t.timeout)
	switch {
	case stage == answering || stage == greeting:
		c.greet()
	case t.una == t.nxt:
		c.probe()
	default:
		c.resend()
	}
	return true
}

// probe asks for the pod's window by a segment that it must answer, since it has been through that number.
func (c *conn) probe() {
	h := packet.TCPHeader{Seq: c.to.una - 1, Flags: packet.ACK}
	c.fresh(&h)
	c.emit(c.to.head[:], 0, &h)
}

// resend begins again at the oldest number that is not acknowledged.
func (c *conn) resend() {
	t := &c.to
	if c.stage.Load() != open || t.una == t.nxt {
		return
	}
	t.recover, t.recovering = t.nxt, true
	c.sendFirst()
}

func (c *conn) sendFirst() {
	if t := &c.to; len(t.segs) > 0 {
		c.sendData(&t.segs[0], true)
	} else if t.fin {
		c.sendFin()
	}
}

// releaseTo gives the memory of the socket's stream back.
func (c *conn) releaseTo() {
	t := &c.to
	for i := range t.segs {
		if k := t.segs[i].k; k != t.last {
			if k.refs--; k.refs == 0 {
				c.free(k)
			}
		}
	}
	if t.last != nil {
		c.free(t.last)
	}
	t.segs, t.last = nil, nil
}
