package tcprelay

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const (
	// bulkSize is the smallest payload, in bytes, of a segment that waits for others to be written with it.
	bulkSize = 8 << 10
	// maxGathered is how many segments are written at once. More would leave the cache before they are written.
	maxGathered = 8
)

// Turn collects what a goroutine does once for all frames that it has at hand. Large payloads of a pod are written to
// the socket, and acknowledged, several superframes at a time. So the reader of the socket is woken once, and so is the
// pod. The zero value is ready.
type Turn struct {
	conns []*conn // those with gathered payloads
	spare [][]byte
	iov   [maxGathered]unix.Iovec
	msg   unix.Msghdr
}

// part is a payload, and the frame around it, which the Turn has taken over.
type part struct{ frame, b []byte }

// bulk reports whether n bytes at seq are the next ones of a stream that is not held up, and enough to be gathered. The
// caller holds mu.
func (c *conn) bulk(seq uint32, n int) bool {
	f := &c.from
	return n >= bulkSize && seq == f.next && c.stage.Load() == open && !f.fin && f.keptLen == 0 && len(f.early) == 0
}

// gather takes over the frame of p and gives p another buffer. The caller holds c.mu.
func (t *Turn) gather(c *conn, p *packet.Packet) {
	f := &c.from
	b := p.IP[p.Payload:]
	if len(f.gathered) == 0 {
		t.conns = append(t.conns, c)
	}
	f.gathered = append(f.gathered, part{p.Buf, b})
	f.next += uint32(len(b))
	p.Buf, p.IP = t.buffer(cap(p.Buf)), nil
}

func (t *Turn) buffer(size int) []byte {
	if n := len(t.spare); n > 0 {
		b := t.spare[n-1]
		t.spare = t.spare[:n-1]
		return b
	}
	return make([]byte, size)
}

// flush writes what was gathered and keeps what the socket does not accept. good is false when the socket accepts no
// more data, and told says that there is something to acknowledge. The caller holds mu.
func (c *conn) flush(t *Turn) (told, good bool) {
	f := &c.from
	if len(f.gathered) == 0 {
		return false, true
	}
	for i := range f.gathered {
		t.iov[i].Base = unsafe.SliceData(f.gathered[i].b)
		t.iov[i].SetLen(len(f.gathered[i].b))
	}
	t.msg.Iov = &t.iov[0]
	t.msg.SetIovlen(len(f.gathered))
	n, errno := sendmsg(c.fd, &t.msg)
	for errno == unix.EINTR {
		n, errno = sendmsg(c.fd, &t.msg)
	}
	t.iov = [maxGathered]unix.Iovec{}
	if errno != 0 {
		n = 0
	}
	if errno == unix.EAGAIN {
		errno = 0
	}
	for i, g := range f.gathered {
		done := min(n, len(g.b))
		n -= done
		if lost := len(g.b) - done; lost > 0 {
			if errno == 0 && !f.short {
				lost -= c.keep(g.b[done:])
			}
			f.next -= uint32(lost) // the pod retransmits it
		}
		t.spare = append(t.spare, g.frame)
		f.gathered[i] = part{}
	}
	f.gathered = f.gathered[:0]
	if f.keptLen > 0 || f.short {
		c.arm(poll.Out)
	}
	f.due = 0
	return c.publish(), errno == 0
}

// End writes and acknowledges what was gathered since the last End.
func (t *Turn) End() {
	for i, c := range t.conns {
		t.conns[i] = nil
		c.mu.Lock()
		told, good := c.flush(t)
		if !good {
			c.deafen()
		}
		c.mu.Unlock()
		switch {
		case !good:
			c.pump()
		case told:
			c.acknowledge()
		}
	}
	t.conns = t.conns[:0]
}
