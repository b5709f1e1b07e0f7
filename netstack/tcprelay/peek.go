package tcprelay

import (
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const (
	// lazy is how many bytes that the pod has acknowledged may stay in the socket while nothing comes, so that a
	// conversation costs no call for each message. While more comes it is lazyBulk: the kernel tells the far end of the
	// room that each call makes, and many small steps would make the far end's segments small.
	lazy     = 16 << 10
	lazyBulk = 256 << 10
	// wide is how much a socket has room for at least once its stream fills reads (SO_RCVLOWAT makes it so). What the
	// pod has not acknowledged takes of that, and the kernel widens it only as bytes are consumed.
	wide = 1 << 20
)

// peek returns the flags with which the socket is read. What is peeked at stays in the socket until it is consumed, and
// the next peek continues behind it (SO_PEEK_OFF).
func (c *conn) peek() int {
	if c.peeks {
		return unix.MSG_PEEK
	}
	return 0
}

// listen waits for more from the socket than what was peeked at.
func (c *conn) listen() {
	t := &c.to
	if c.peeks && t.una-t.taken >= lazy {
		c.consume(t.una)
	}
	if low := t.nxt - t.taken + 1; c.peeks && low != t.low {
		setLow(c.fd, low)
		t.low = low
	}
	c.arm(poll.In)
}

// widen makes room for a stream that fills reads.
func (c *conn) widen() {
	if t := &c.to; c.peeks && !t.widened {
		t.widened, t.low = true, wide // until listen sets it
		setLow(c.fd, wide)
	}
}

// consume drops the socket's bytes before the number to, which the pod has acknowledged. Killed at any instant, it
// leaves the memory saying between which numbers the socket's first byte is. It reports whether it has dropped any.
func (c *conn) consume(to uint32) (any bool) {
	t := &c.to
	for c.peeks && ahead(to, t.taken) {
		c.remember(liveTaken, uint64(t.taken)<<32|uint64(to))
		n, errno := discard(c.fd, to-t.taken)
		if errno == unix.EINTR {
			continue
		}
		if n <= 0 || errno != 0 {
			return any // the socket failed, which the next read finds out
		}
		t.taken += uint32(n)
		c.remember(liveTaken, uint64(t.taken)<<32|uint64(t.taken))
		any = true
	}
	return any
}

// repeat sends the oldest unacknowledged bytes once more, or the FIN.
func (c *conn) repeat() { c.repeatAt(c.to.una, c.to.limit) }

// repeatAt sends most bytes at the number at once more, which are still in the socket, or fewer, or the FIN, if that
// has this number. It returns how many numbers it has repeated; 0 if there was no memory.
func (c *conn) repeatAt(at uint32, most int) (n int) {
	t := &c.to
	end := t.nxt
	if t.fin {
		end--
	}
	if at == end {
		if !t.fin {
			return 0
		}
		c.sendFin()
		return 1
	}
	b := c.space(min(int(end-at), t.limit, most))
	if b == nil {
		return 0
	}
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, int(at-t.taken))
	n, _ = recv(c.fd, b, unix.MSG_PEEK)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, int(end-t.taken))
	if n > 0 {
		c.sendData(&sent{t.last, t.last.used + headroom, n, at}, true)
	}
	c.tidy()
	return max(n, 0)
}

// skip continues behind what the Relay before had sent, and the pod has acknowledged.
func (c *conn) skip(ack uint32) {
	t := &c.to
	t.nxt = ack
	if c.hostEnded && ack == c.hostEnd+1 {
		t.fin = true
		ack--
	}
	c.consume(ack)
	c.next.Store(t.nxt)
}

// ask asks the pod how far it is, with an old byte. The pod's kernel answers that at once, where it answers a segment
// without data only from time to time (tcp_invalid_ratelimit of Linux).
func (c *conn) ask() {
	t := &c.to
	b := heads.Get().(*[headroom + 4 + 8*maxBlocks]byte)
	defer heads.Put(b)
	h := packet.TCPHeader{Seq: t.una - 1, Flags: packet.ACK}
	c.fresh(&h)
	b[packet.TCPHeadLen(&c.key.Src)] = 0
	c.emit(b[:], 1, &h)
}
