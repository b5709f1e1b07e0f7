package tcprelay

import (
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/poll"
)

// write writes b to the socket and keeps what the socket does not accept, as far as there is memory. taken is how many
// bytes of b were written or kept. good is false when the socket accepts no more data.
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

// keep keeps b for later, as far as there is memory, and returns how many bytes it kept.
func (c *conn) keep(b []byte) (kept int) {
	f := &c.from
	for len(b) > 0 {
		if n := len(f.kept); n == 0 || f.kept[n-1].used == chunkSize {
			k := c.newChunk()
			if k == nil {
				f.short = true // until the socket accepts data again
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

// drain writes what was kept to the socket, and announces to the pod the room that this makes.
func (c *conn) drain() {
	c.mu.Lock()
	f := &c.from
	if c.stage.Load() == dead || f.keptLen == 0 && !f.short {
		c.mu.Unlock()
		return
	}
	f.drained += f.keptLen
	f.short, f.stuck = false, false
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
			return // Ready pumps next
		}
		k.done += n
		f.keptLen -= n
		if k.done == k.used {
			c.free(k)
			f.kept = append(f.kept[:0], f.kept[1:]...)
		}
	}
	if f.keptLen == 0 {
		c.finish()
	}
	f.drained -= f.keptLen
	tell := c.publish() && (f.keptLen == 0 || f.drained >= c.worthTelling())
	if tell {
		f.drained = 0
	}
	c.mu.Unlock()
	if tell {
		c.acknowledge()
	}
}

// worthTelling returns how many bytes a pod is told of at once, of those that the socket accepts later. Smaller steps
// are not worth a segment, unless they are the last one (RFC 9293 3.8.6.2.2). A far pod whose bytes are not
// acknowledged in time takes them for lost, and sends less; its acknowledgements come for every second segment (RFC
// 5681 4.2).
func (c *conn) worthTelling() int {
	if c.far != nil {
		return 2 * c.far.mss
	}
	return window / 4
}
