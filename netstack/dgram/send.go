package dgram

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// sendControl has the control messages of a datagram that is sent, each padded as by CMSG_SPACE: UDP_SEGMENT and an
// address to send from. One that is not needed is left out.
type sendControl struct {
	raw [sendSpace / 8]uint64 // aligned as control messages are
	n   int                   // bytes in use
}

const sendSpace = 64

// put appends a control message.
func (c *sendControl) put(level, kind int32, data []byte) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&c.raw)), sendSpace)[c.n:]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	c.n += unix.CmsgSpace(len(data))
}

// from adds the address to send from, which is of the socket's family (ip(7), RFC 3542 6.6).
func (c *sendControl) from(a *packet.Addr) {
	if a.Is4() {
		var info [unix.SizeofInet4Pktinfo]byte
		copy(info[4:], a[12:]) // ipi_spec_dst
		c.put(unix.IPPROTO_IP, unix.IP_PKTINFO, info[:])
		return
	}
	var info [unix.SizeofInet6Pktinfo]byte
	copy(info[:], a[:]) // ipi6_addr
	c.put(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info[:])
}

// Send sends data as one datagram, or as datagrams of size bytes each if size is not 0. They leave from the address
// from; with the zero address the kernel chooses.
func Send(fd int, to *Addr, from packet.Addr, data []byte, size int) unix.Errno {
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(data)}}
	iov[0].SetLen(len(data))
	return Sendv(fd, to, from, iov[:], size)
}

// Sendv is Send for data in several places.
func Sendv(fd int, to *Addr, from packet.Addr, data []unix.Iovec, size int) unix.Errno {
	var msg unix.Msghdr
	var ctl sendControl
	to.To(&msg)
	msg.Iov = unsafe.SliceData(data)
	msg.SetIovlen(len(data))
	if size != 0 {
		n := uint16(size)
		ctl.put(unix.SOL_UDP, unix.UDP_SEGMENT, (*[2]byte)(unsafe.Pointer(&n))[:])
	}
	if from != (packet.Addr{}) {
		ctl.from(&from)
	}
	if ctl.n > 0 {
		msg.Control = (*byte)(unsafe.Pointer(&ctl.raw))
		msg.SetControllen(ctl.n)
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT, 0, 0, 0)
	return errno
}
