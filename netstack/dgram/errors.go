package dgram

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// Error is an ICMP error about a packet that was sent.
type Error struct {
	About packet.Endpoint // the destination of the packet
	By    packet.Addr     // the sender of the error; of the same family as About, or zero
	Why   packet.ICMPError
	Data  []byte // the beginning of the packet, from its L4 header on for Echo, from its data on for UDP
}

// extended is struct sock_extended_err and the address of the error's sender that follows it.
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

// mostErrors bounds how many errors one call of Hear reads.
const mostErrors = 16

// Hear reads the error queue of a socket and passes each error to tell, which must not keep its Data. Errors about a
// path's MTU are left out, because the next send that does not fit returns them.
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

// error returns the content of a control message IP_RECVERR or IPV6_RECVERR in m.
func (c *Control) error(m *unix.Msghdr) (e extended) {
	for level, kind, data, rest := next(c.written(m)); data != nil; level, kind, data, rest = next(rest) {
		if level == unix.IPPROTO_IP && kind == unix.IP_RECVERR || level == unix.IPPROTO_IPV6 && kind == unix.IPV6_RECVERR {
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Offsetof(e.by)+unix.SizeofSockaddrInet6), data)
		}
	}
	return e
}

// why returns the kind of the error. ok is false for errors that a system call on the socket has returned already, and
// for those that say nothing to the sender.
func (e *extended) why() (packet.ICMPError, bool) {
	switch {
	case e.origin == fromICMP && e.kind == timeExceeded, e.origin == fromICMP6 && e.kind == timeExceeded6:
		return packet.TimeExceeded, true
	case e.origin == fromICMP, e.origin == fromICMP6:
		return refusal.Kind(unix.Errno(e.errno))
	}
	return 0, false
}
