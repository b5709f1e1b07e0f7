package tcprelay

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/alive"
	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// turn is the number of superframes of one connection that are sent before other connections get their turn.
	turn = 32
	// A retransmission timeout begins at minTimeout (TCP_RTO_MIN of Linux) and doubles up to maxTimeout. A pod that
	// acknowledges nothing for giveUp is given up. openTimeout bounds how long a connection may take to open, counted
	// from the pod's last SYN.
	minTimeout = 200 * time.Millisecond
	synTimeout = time.Second
	// askTimeout is minTimeout for the question how far the pod is. Everything waits for its answer, and to ask twice
	// does no harm.
	askTimeout  = 40 * time.Millisecond
	maxTimeout  = 20 * time.Second
	giveUp      = 2 * time.Minute
	openTimeout = 20 * time.Second
	// maxGulp is how many superframes are read at once at most.
	maxGulp = 8
	// maxFlight bounds the bytes that are kept for a pod until it acknowledges them, whatever window it announces.
	maxFlight = 4 << 20
	// memoryWait is the time between two attempts to get memory.
	memoryWait = 20 * time.Millisecond
	// noMemory is the result of a read for which there was no memory.
	noMemory = unix.ENOMEM
	// small is the least room, in bytes, for which the rest of a chunk is used for another read.
	small = 16 << 10
)

// hostStream is the state of the host socket's stream. It belongs to the goroutine that pumps.
type hostStream struct {
	una, nxt   uint32 // the oldest number that is not acknowledged, and the next one (RFC 9293 3.3.1)
	room       uint32 // the pod's window
	mss, limit int    // the largest payload of a segment and of a superframe
	fin        bool   // the stream has ended, and the pod was sent a FIN with number nxt-1
	cut        bool   // the socket accepts no more data; when everything was read from it, the pod is reset
	recover    uint32 // the value of nxt when a loss was noticed
	recovering bool

	flows bool // the last read was filled

	// Of a socket that is peeked at: the number of its first byte that was not consumed, how many must be unread for
	// the socket to be readable, and whether the Relay before had begun the stream and the pod has not told yet how far
	// it is.
	taken   uint32
	low     uint32
	asking  bool
	widened bool // widen was called

	segs []sent // unacknowledged segments, oldest first
	last *chunk // the chunk into which the next segment may be read

	timeout  time.Duration // the present one, which doubles each time it passes
	resendAt time.Duration // 0: no acknowledgement is awaited
	deadline time.Duration // when the pod is given up

	far    alive.Question // the pod's keep-alive probe, passed on to the far end
	lookAt time.Duration  // when podLives checks next; 0: not yet set
	silent int            // checks in a row for which the pod had sent nothing

	told atomic.Uint32 // the number that our last segment with data or FIN acknowledged
	head [headroom]byte
}

// sent is a segment's payload.
type sent struct {
	k      *chunk
	off, n int // in k.buf
	seq    uint32
}

// carry reads data from the socket and sends it, as far as the pod's window allows. The error is the socket's.
func (c *conn) carry(notes uint32) unix.Errno {
	t := &c.to
	defer c.tidy()
	for done := 0; done < turn; {
		if t.fin {
			return 0
		}
		flight := t.nxt - t.una
		room := int(t.room) - int(flight)
		mine := false // our window allows less than the pod's
		if f := c.far; f != nil {
			free := c.farRoom(flight)
			mine = free < room
			room = min(room, free)
			if room > f.mss { // whole segments, unless the socket has no more
				room -= room % f.mss
			}
		}
		blocked := room <= 0 || room < c.sendMSS() && flight > 0
		if c.far != nil {
			c.far.held = blocked && mine
		}
		if blocked {
			c.blocked(flight)
			return 0 // the next acknowledgement continues
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
			// A socket whose buffer is nearly full is readable for that alone (tcp_epollin_ready of Linux). It is made
			// room in, as far as the pod has acknowledged what is in it; otherwise the next acknowledgement continues.
			if notes&arrived != 0 && done == 0 && t.taken != t.nxt && !c.consume(t.una) {
				return 0
			}
			c.listen()
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
			break // the socket has no more
		}
		done += (n + t.limit - 1) / t.limit
	}
	c.listen()
	return 0
}

// pace returns whether the pod is limited, and how long to wait before the next superframe. Without it a sender that
// has no congestion control would lose nearly everything it sends beyond the limit.
func (c *conn) pace() (limited bool, wait time.Duration) {
	if c.r.o.Pace == nil {
		return false, 0
	}
	return c.r.o.Pace(c.key.Src)
}

// read reads the socket once, at most room bytes, and sends what it got: one superframe, or several if many allows it.
// asked is the number of bytes it asked for.
func (c *conn) read(room int, many bool) (asked, n int, errno unix.Errno) {
	t := &c.to
	if many && t.flows && room >= 2*t.limit {
		c.widen()
		return c.gulp(min(room/t.limit, maxGulp))
	}
	b := c.space(min(room, t.limit))
	if b == nil {
		return 0, 0, noMemory
	}
	n, errno = recv(c.fd, b, c.peek())
	if n <= 0 || errno != 0 {
		c.tidy()
		return len(b), 0, errno
	}
	c.say(n, n < len(b))
	return len(b), n, 0
}

// gulp reads several superframes with one system call. Each read makes room, which the host's kernel announces to the
// far end in a segment, so fewer reads cost fewer segments.
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
	n, errno = recvmsg(c.fd, iov[:count], c.peek())
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
		c.tidy()
	}
	return count * t.limit, n, errno
}

// space returns where to read the next n bytes or fewer, with room for headers before them. It returns nil when there
// is no memory.
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

// tidy frees the last chunk if it is unused.
func (c *conn) tidy() {
	if t := &c.to; t.last != nil && t.last.refs == 0 {
		c.free(t.last)
		t.last = nil
	}
}

// say sends the n bytes that were read into space, as one superframe.
func (c *conn) say(n int, push bool) {
	t := &c.to
	k := t.last
	s := sent{k, k.used + headroom, n, t.nxt}
	if !c.peeks { // otherwise it is in the socket as well
		k.used += headroom + n
		k.refs++
		t.segs = append(t.segs, s)
	}
	t.nxt += uint32(n)
	c.next.Store(t.nxt) // before received is loaded
	if t.resendAt == 0 {
		c.await(c.timeout())
	}
	if c.far != nil {
		c.spoken()
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

// fresh fills in the acknowledgement and the window.
func (c *conn) fresh(h *packet.TCPHeader) {
	got := c.received.Load()
	h.Ack, h.Window = uint32(got>>32), uint16(got)
	c.to.told.Store(h.Ack)
}

// bye tells the pod that the socket's stream has ended.
func (c *conn) bye() {
	t := &c.to
	t.fin = true
	c.remember(liveHostEnd, known|uint64(t.nxt))
	t.nxt++
	c.next.Store(t.nxt)
	c.await(c.timeout())
	c.sendFin()
	c.arm(0) // the far end may still reset the connection
}

func (c *conn) sendFin() {
	h := packet.TCPHeader{Seq: c.to.nxt - 1, Flags: packet.FIN | packet.ACK}
	c.fresh(&h)
	c.emit(c.to.head[:], 0, &h)
}

// greet sends our SYN or SYN-ACK.
func (c *conn) greet() {
	t := &c.to
	c.next.Store(t.nxt)
	h := packet.TCPHeader{Seq: t.una, Flags: packet.SYN, Window: maxWindowField}
	var options [12]byte
	scales := true
	if c.stage.Load() == answering {
		h.Flags |= packet.ACK
		c.fresh(&h)
		scales = c.from.scales // does not change after accept
	}
	h.Options = putOffer(options[:0], c.r.o.MTU()-packet.TCPHeadLen(&c.key.Src), scales, c.far != nil)
	if c.far != nil {
		c.far.timed, c.far.timedAt = t.nxt, 0
		if t.resendAt == 0 {
			c.far.timedAt = c.r.now()
		}
	}
	if t.resendAt == 0 {
		t.timeout = synTimeout
		t.resendAt = c.r.now() + t.timeout
		c.timer.set(t.timeout)
	}
	c.emit(t.head[:], 0, &h)
}

// takeAcks handles what the pod has acknowledged since the last call.
func (c *conn) takeAcks() {
	t := &c.to
	acked := c.acked.Load()
	ack := uint32(acked >> 32)
	opened := t.room == 0 && uint32(acked) > 0
	t.room = min(uint32(acked), maxFlight)
	if ack == t.una && !opened {
		return
	}
	if ahead(ack, t.nxt) {
		c.skip(ack)
	}
	progress := ack - t.una
	t.una = ack
	done := 0
	for i := range t.segs {
		s := &t.segs[i]
		if over := ack - s.seq; over < uint32(s.n) || ahead(s.seq, ack) {
			if !ahead(s.seq, ack) { // the acknowledged part makes room for the headers of the rest
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
	if c.peeks && t.una-t.taken >= lazyBulk {
		c.consume(t.una)
	}
	if c.far != nil && progress > 0 {
		c.farAcked(progress) // may take a sample
	}
	if t.una != t.nxt {
		c.await(c.timeout())
	}
	if t.una == t.nxt {
		t.resendAt, t.recovering = 0, false
		return
	}
	if t.recovering && c.far == nil {
		if t.recovering = ahead(t.recover, ack); t.recovering {
			c.sendFirst() // RFC 6582: a partial acknowledgement means that the next segment is lost too
		}
	}
}

// await starts waiting for an acknowledgement, or starts again after one.
func (c *conn) await(d time.Duration) {
	t := &c.to
	now := c.r.now()
	t.timeout, t.resendAt, t.deadline = d, now+d, now+giveUp
	c.timer.set(d)
}

// blocked makes sure that a pod that has announced no window is probed, because its next announcement could be lost.
func (c *conn) blocked(flight uint32) {
	if flight == 0 && c.to.resendAt == 0 {
		c.await(c.timeout())
	}
}

// overdue retransmits what is lost, or probes the pod, when a timeout has passed. It returns false when the pod is
// given up.
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
		c.resend(true)
	}
	return true
}

// probe asks for the pod's window with an old sequence number, which the pod must answer.
func (c *conn) probe() {
	if c.to.asking {
		c.ask()
		return
	}
	h := packet.TCPHeader{Seq: c.to.una - 1, Flags: packet.ACK}
	c.fresh(&h)
	c.emit(c.to.head[:], 0, &h)
}

// resend retransmits the oldest unacknowledged segment, and starts a recovery up to nxt. late says that a timeout has
// passed.
func (c *conn) resend(late bool) {
	t := &c.to
	if c.far != nil {
		if late {
			c.farExpired()
		} else {
			c.farLost()
		}
		return
	}
	if c.stage.Load() != open || t.una == t.nxt {
		return
	}
	t.recover, t.recovering = t.nxt, true
	c.sendFirst()
}

func (c *conn) sendFirst() {
	if t := &c.to; c.peeks {
		c.repeat()
	} else if len(t.segs) > 0 {
		c.sendData(&t.segs[0], true)
	} else if t.fin {
		c.sendFin()
	}
}

// releaseTo releases the memory of the socket's stream.
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
