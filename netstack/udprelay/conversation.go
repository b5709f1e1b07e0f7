package udprelay

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// conversation is one pod's port talking with one address and port outside. What comes from there is for the pod.
type conversation struct {
	m     *mapping
	tuple packet.Tuple // of what the pod sends
	to    dgram.Addr   // the far end's
	head  header

	next  atomic.Pointer[conversation] // of the table's chain
	used  atomic.Int64                 // when last, by Relay.now
	known int64                        // used, as of when the heap looked; guarded by Relay.mu, like place
	place int
	at    int  // in the mapping's talks; guarded by Relay.mu
	gone  bool // it has ended; guarded by Relay.mu
	claim share.Claim[packet.Addr, *conversation]

	noGSO atomic.Bool // the device takes no UDP_SEGMENT
}

// newConversation makes one that is in no table yet.
func newConversation(m *mapping, t *packet.Tuple) *conversation {
	c := &conversation{m: m, tuple: *t, to: dgram.AddrOf(packet.Endpoint{Addr: t.Dst, Port: t.DstPort}), head: newHeader(t)}
	c.claim.Value = c
	c.known = m.r.now.Load()
	c.used.Store(c.known)
	return c
}

// touch notes that the conversation is in use. The time is written only when it changed, so that both directions may
// keep its line.
func (c *conversation) touch() {
	r := c.m.r
	if now := r.now.Load(); c.used.Load() != now {
		c.used.Store(now)
		r.talks.Touch(&c.claim)
		r.sockets.Touch(&c.m.claim)
	}
}

// send sends the datagrams of p. The mapping is acquired.
func (c *conversation) send(p *packet.Packet) (mtu int, err error) {
	c.m.says.Set(c.m.fd, c.m.pod.Addr.Is4(), dgram.HeadOf(p))
	data := payload(p)
	if p.VNet.GSOType == packet.GSONone {
		return c.put(p, data, 0)
	}
	size := int(p.VNet.GSOSize)
	if !c.noGSO.Load() {
		if mtu, err = c.put(p, data, size); err != errNotWhole {
			return mtu, err
		}
	}
	for len(data) > 0 {
		n := min(size, len(data))
		if mtu, err = c.put(p, data[:n], 0); err != nil {
			return mtu, err // the others would fare no better
		}
		data = data[n:]
	}
	return 0, nil
}

// payload is the data of p's datagrams; an IP packet may be longer than its datagram.
func payload(p *packet.Packet) []byte {
	return p.IP[p.Payload : p.L4+int(p.IP[p.L4+4])<<8+int(p.IP[p.L4+5])]
}

// tries is how often a datagram is given to the kernel: an error that was waiting in the socket is about an earlier
// one, maybe to somebody else, and the call that hears of it sends nothing. Two may be waiting.
const tries = 3

// put sends one datagram of p, or several of size bytes each.
func (c *conversation) put(p *packet.Packet, data []byte, size int) (mtu int, err error) {
	var errno unix.Errno
	for range tries {
		errno = sendmsg(c.m.fd, &c.to, data, size)
		switch fateOf(errno, size != 0) {
		case sent:
			return 0, nil
		case busy:
			return 0, ErrBusy
		case notWhole:
			if errno == unix.EIO {
				c.noGSO.Store(true) // a device that cannot checksum (udp(7), UDP_SEGMENT)
			}
			return 0, errNotWhole
		case tooBig:
			if mtu = dgram.PathMTU(c.tuple.Dst); mtu > 0 && mtu < p.Payload+len(data) {
				return mtu, ErrTooBig
			}
		}
		c.m.hearErrors()
	}
	return 0, errno
}

// refuse tells the pod that its datagrams do not arrive, and who says so, quoting one like the pod's.
func (c *conversation) refuse(why packet.ICMPError, by packet.Addr) {
	var p packet.Packet
	if p.ParseIP(c.head.quote()) == packet.Good {
		c.m.r.o.Refuse(&p, why, by)
	}
}

// segmentControl is a control message with one UDP_SEGMENT in it, padded as CMSG_SPACE pads.
type segmentControl struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

// sendmsg sends data as one datagram, or as datagrams of size bytes each. The call is raw: it does not block, and the
// runtime, told of it, would take its tens of microseconds, in which it may run the receiver's side, for blocking.
func sendmsg(fd int, to *dgram.Addr, data []byte, size int) unix.Errno {
	var msg unix.Msghdr
	var ctl segmentControl
	iov := unix.Iovec{Base: unsafe.SliceData(data)}
	iov.SetLen(len(data))
	to.To(&msg)
	msg.Iov = &iov
	msg.SetIovlen(1)
	if size != 0 {
		ctl.hdr.Level, ctl.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		ctl.hdr.SetLen(unix.CmsgLen(2))
		ctl.size = uint16(size)
		msg.Control = (*byte)(unsafe.Pointer(&ctl))
		msg.SetControllen(int(unsafe.Sizeof(ctl)))
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT, 0, 0, 0)
	return errno
}
