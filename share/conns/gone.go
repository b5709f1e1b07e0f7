package conns

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Gone reports whether a client has reset its connection, or the connection is closed. What the client sent before is
// lost with that (RFC 9293 3.10.7.4), though the kernel still gives it to whoever reads. It is false for connections
// that are not of the kernel.
func Gone(c net.Conn) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true // it is closed
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return closed || err != nil
}
