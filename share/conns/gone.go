package conns

import (
	"net"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Gone reports whether a client has reset its connection, or the connection is closed. What the client sent before is
// lost with that (RFC 9293 3.10.7.4), though the kernel still gives it to whoever reads. It is false for connections
// that are not of the kernel.
func Gone(c net.Conn) bool { return in(c, unix.BPF_TCP_CLOSE) }

// GoneSocket is Gone for a socket.
func GoneSocket(fd int) bool {
	there, err := stateIn(fd, unix.BPF_TCP_CLOSE)
	return there || err != nil
}

// Left reports whether a client is Gone or sends no more, since it has ended its direction (RFC 9293 3.6).
func Left(c net.Conn) bool { return in(c, unix.BPF_TCP_CLOSE, unix.BPF_TCP_CLOSE_WAIT) }

// in reports whether a connection has one of some states of TCP, or is closed.
func in(c net.Conn, states ...uint8) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true // it is closed
	}
	there := false
	err = raw.Control(func(fd uintptr) { there, _ = stateIn(int(fd), states...) })
	return there || err != nil
}

// stateIn reports whether a socket is in one of some states of TCP.
func stateIn(fd int, states ...uint8) (bool, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && slices.Contains(states, info.State), err
}
