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
	By    packet.Addr     // who says so; of the family of About, or zero
	Why   packet.ICMPError
	Data  []byte // the beginning of what was sent, from its L4 header on for Echo, from its data on for UDP
}

// extended is struct sock_extended_err, behind which stands the address of who sent the error.
type extended struct {
	errno              uint32
	origin, kind, code uint8
	_                  uint8
	info, data         uint32
	by                 Addr
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
		var ctl Control
		var about Addr
		about.From(&msg)
		iov := unix.Iovec{Base: &data[0]}
		iov.SetLen(len(data))
		msg.Iov = &iov
		msg.SetIovlen(1)
		ctl.For(&msg)
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0, 0)
		if errno != 0 {
			return
		}
		err := ctl.error(&msg)
		why, ok := err.why()
		if !ok {
			continue
		}
		if e, ok := about.Endpoint(); ok {
			by, ok := err.by.Endpoint()
			if !ok || by.Addr.Is4() != e.Addr.Is4() {
				by = packet.Endpoint{}
			}
			tell(Error{e, by.Addr, why, data[:n]})
		}
	}
}

// error reads the control message of IP_RECVERR or IPV6_RECVERR.
func (c *Control) error(m *unix.Msghdr) (e extended) {
	for level, kind, data, rest := next(c.written(m)); data != nil; level, kind, data, rest = next(rest) {
		if level == unix.IPPROTO_IP && kind == unix.IP_RECVERR || level == unix.IPPROTO_IPV6 && kind == unix.IPV6_RECVERR {
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Offsetof(e.by)+unix.SizeofSockaddrInet6), data)
		}
	}
	return e
}

// why is false for errors of the socket's own calls, which were told there, and for what has nothing to tell.
func (e *extended) why() (packet.ICMPError, bool) {
	switch {
	case e.origin == fromICMP && e.kind == timeExceeded, e.origin == fromICMP6 && e.kind == timeExceeded6:
		return packet.TimeExceeded, true
	case e.origin == fromICMP, e.origin == fromICMP6:
		return refusal.Kind(unix.Errno(e.errno))
	}
	return 0, false
}
