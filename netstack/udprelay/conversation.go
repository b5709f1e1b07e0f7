package udprelay

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// conversation is one pod's port talking with one address and port outside.
type conversation struct {
	r     *Relay
	tuple packet.Tuple // of what the pod sends
	fd    int
	watch atomic.Pointer[poll.Watch] // a stale event may call Ready before it is there
	head  header

	next  atomic.Pointer[conversation] // of the table's chain
	used  atomic.Int64                 // when last, by Relay.now
	known int64                        // used, as of when the heap looked; guarded by Relay.mu, like place
	place int

	users atomic.Int32 // being in the table is one; whoever makes it zero closes fd
	df    atomic.Bool  // the socket sets Don't Fragment
	noGSO atomic.Bool  // the device takes no UDP_SEGMENT
	bulk  atomic.Bool  // the kernel coalesced what came last
}

// newConversation opens the socket and gives the conversation acquired, in no table yet.
func newConversation(r *Relay, t *packet.Tuple) (*conversation, error) {
	fd, err := dial(t)
	if err != nil {
		return nil, err
	}
	c := &conversation{r: r, tuple: *t, fd: fd, head: newHeader(t)}
	c.users.Store(1)
	c.used.Store(r.now.Load())
	c.known = c.used.Load()
	// For nothing at first: the handler needs the Watch.
	w, err := r.o.Poller.Add(fd, c, 0)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	c.watch.Store(w)
	w.Arm(poll.In)
	return c, nil
}

// dial opens a host socket connected to the destination of t.
func dial(t *packet.Tuple) (fd int, err error) {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(t.DstPort), Addr: t.Dst})
	if t.Dst.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(t.DstPort), Addr: [4]byte(t.Dst[12:])}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, to); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	// Kernels before 5.0 have no UDP_GRO: datagrams come one by one.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	return fd, nil
}

// acquire keeps the socket open until release. It is false when the conversation ended.
func (c *conversation) acquire() bool {
	for {
		n := c.users.Load()
		if n == 0 {
			return false
		}
		if c.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (c *conversation) release() {
	if c.users.Add(-1) == 0 {
		c.watch.Load().Close()
		_ = unix.Close(c.fd)
	}
}

// touch writes the time only when it changed, so that both directions may keep its line.
func (c *conversation) touch() {
	if now := c.r.now.Load(); c.used.Load() != now {
		c.used.Store(now)
	}
}

// send sends the datagrams of p. The conversation is acquired.
func (c *conversation) send(p *packet.Packet) (mtu int, err error) {
	if c.df.Load() != p.DontFragment {
		c.setDF(p.DontFragment)
	}
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

// tries is how often a datagram is given to the kernel: an error that was waiting in the socket is about an earlier one, and
// the call that hears of it sends nothing. Two may be waiting.
const tries = 3

// put sends one datagram of p, or several of size bytes each.
func (c *conversation) put(p *packet.Packet, data []byte, size int) (mtu int, err error) {
	var errno unix.Errno
	for range tries {
		errno = sendmsg(c.fd, data, size)
		switch fateOf(errno, size != 0) {
		case sent:
			return 0, nil
		case busy:
			return 0, ErrBusy
		case refused:
			c.tellRefused()
		}
	}
	switch fateOf(errno, size != 0) {
	case notWhole:
		if errno == unix.EIO {
			c.noGSO.Store(true) // a device that cannot checksum (udp(7), UDP_SEGMENT)
		}
		return 0, errNotWhole
	case tooBig:
		if mtu = c.pathMTU(); mtu > 0 && mtu < p.Payload+len(data) {
			return mtu, ErrTooBig
		}
	}
	return 0, errno
}

// setDF makes the socket set Don't Fragment, and refuse what does not fit, or do as the host does.
func (c *conversation) setDF(on bool) {
	mode := unix.IP_PMTUDISC_WANT
	if on {
		mode = unix.IP_PMTUDISC_DO
	}
	level, opt := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	if c.head.is4() {
		level, opt = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	}
	_ = unix.SetsockoptInt(c.fd, level, opt, mode)
	c.df.Store(on)
}

// pathMTU is the MTU of the way to the destination as far as the host knows it, 0 when it does not.
func (c *conversation) pathMTU() int {
	level, opt := unix.IPPROTO_IPV6, unix.IPV6_MTU
	if c.head.is4() {
		level, opt = unix.IPPROTO_IP, unix.IP_MTU
	}
	n, err := unix.GetsockoptInt(c.fd, level, opt)
	if err != nil {
		return 0
	}
	return n
}

// tellRefused passes an ICMP port unreachable that the socket got on to the pod, quoting a datagram like the pod's.
func (c *conversation) tellRefused() {
	var p packet.Packet
	quoted := c.head.quote()
	if p.ParseIP(quoted[:]) != packet.Good {
		return
	}
	ip := make([]byte, 1280)
	if n := packet.PutICMPError(ip, &p, packet.PortUnreachable, p.Tuple.Dst, 0); n > 0 {
		c.r.o.Send(ip[:n], packet.VNetHdr{})
	}
}

// segmentControl is a control message with one UDP_SEGMENT in it, padded as CMSG_SPACE pads.
type segmentControl struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

// sendmsg sends data as one datagram, or as datagrams of size bytes each. The call is raw: it does not block, and the runtime,
// told of it, would take its tens of microseconds, in which it may run the receiver's side, for blocking.
func sendmsg(fd int, data []byte, size int) unix.Errno {
	var msg unix.Msghdr
	var ctl segmentControl
	iov := unix.Iovec{Base: unsafe.SliceData(data)}
	iov.SetLen(len(data))
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
