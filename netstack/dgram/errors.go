package dgram

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// Error is what an ICMP error says of something that was sent.
type Error struct {
	About packet.Endpoint // whom it was for
	Why   packet.ICMPError
	Data  []byte // the beginning of what was sent, from its L4 header on for Echo, from its data on for UDP
}

// control has room for the control message of IP_RECVERR or IPV6_RECVERR: the error, and the address of who sent it.
type control struct {
	hdr unix.Cmsghdr
	err struct { // struct sock_extended_err
		errno              uint32
		origin, kind, code uint8
		_                  uint8
		info, data         uint32
	}
	_ [unix.SizeofSockaddrInet6 + 4]byte
}

// Origins of errors (linux/errqueue.h), and ICMP types.
const (
	fromICMP  = 2
	fromICMP6 = 3

	timeExceeded  = 11
	timeExceeded6 = 3
)

// mostErrors bounds what is heard at once.
const mostErrors = 16

// Hear takes the errors that wait in a socket, and hands them to tell, which borrows what it gets. What is said of a
// path's MTU is left out: it is told by the call that sends something that does not fit.
func Hear(fd int, tell func(Error)) {
	var data [64]byte
	for range mostErrors {
		var msg unix.Msghdr
		var ctl control
		var about Addr
		about.From(&msg)
		iov := unix.Iovec{Base: &data[0]}
		iov.SetLen(len(data))
		msg.Iov = &iov
		msg.SetIovlen(1)
		msg.Control = (*byte)(unsafe.Pointer(&ctl))
		msg.SetControllen(int(unsafe.Sizeof(ctl)))
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0, 0)
		if errno != 0 {
			return
		}
		why, ok := ctl.why()
		if !ok {
			continue
		}
		if e, ok := about.Endpoint(); ok {
			tell(Error{e, why, data[:n]})
		}
	}
}

// why is false for errors of the socket's own calls, which were told there, and for what has nothing to tell.
func (c *control) why() (packet.ICMPError, bool) {
	switch {
	case c.err.origin == fromICMP && c.err.kind == timeExceeded, c.err.origin == fromICMP6 && c.err.kind == timeExceeded6:
		return packet.TimeExceeded, true
	case c.err.origin == fromICMP, c.err.origin == fromICMP6:
		return refusal.Kind(unix.Errno(c.err.errno))
	}
	return 0, false
}
