package udprelay

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/refusal"
)

// errorControl has room for the control message of IP_RECVERR or IPV6_RECVERR: the error, and the address of who sent it.
type errorControl struct {
	hdr unix.Cmsghdr
	err struct { // struct sock_extended_err
		errno              uint32
		origin, kind, code uint8
		_                  uint8
		info, data         uint32
	}
	_ [unix.SizeofSockaddrInet6 + 4]byte
}

// Origins of errors (linux/errqueue.h).
const (
	fromICMP  = 2
	fromICMP6 = 3
)

// hearErrors takes the errors that wait in the socket (IP_RECVERR), about datagrams that were sent earlier, and tells the pod. What
// is said of a path's MTU is told when something is sent that does not fit.
func (m *mapping) hearErrors() {
	for range width {
		var msg unix.Msghdr
		var ctl errorControl
		var about sockaddr // whom the datagram was for
		msg.Name, msg.Namelen = (*byte)(unsafe.Pointer(&about.raw)), uint32(unsafe.Sizeof(about.raw))
		msg.Control = (*byte)(unsafe.Pointer(&ctl))
		msg.SetControllen(int(unsafe.Sizeof(ctl)))
		_, _, errno := unix.RawSyscall6(unix.SYS_RECVMSG, uintptr(m.fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0, 0)
		if errno != 0 {
			return
		}
		if origin := ctl.err.origin; origin != fromICMP && origin != fromICMP6 {
			continue // we were told in the call
		}
		kind, ok := refusal.Kind(unix.Errno(ctl.err.errno))
		if !ok {
			continue
		}
		if e, ok := about.endpoint(); ok {
			t := m.tuple(e)
			if c := m.r.table.find(&t); c != nil && c.m == m {
				c.refuse(kind)
			}
		}
	}
}
