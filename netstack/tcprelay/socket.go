package tcprelay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/alive"
	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
)

// send, recv, recvmsg, discard, setLow and sendmsg are raw system calls on sockets that do not block. The Go runtime is
// not told of them: it would take a call that runs the receiver's softirq work for a blocked one, and hand its
// processor to another thread (as in package tap).
func recv(fd int, b []byte, flags int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(unix.MSG_DONTWAIT|flags), 0, 0)
	return int(n), errno
}

func recvmsg(fd int, iov []unix.Iovec, flags int) (int, unix.Errno) {
	var m unix.Msghdr
	m.Iov = unsafe.SliceData(iov)
	m.SetIovlen(len(iov))
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), uintptr(unix.MSG_DONTWAIT|flags))
	return int(n), errno
}

// discard reads up to n bytes and drops them.
func discard(fd int, n uint32) (int, unix.Errno) {
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	return int(got), errno
}

// setLow makes a socket readable when at least n bytes are unread.
func setLow(fd int, n uint32) {
	v := int32(n)
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, uintptr(unsafe.Pointer(&v)), 4, 0)
}

func send(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

func sendmsg(fd int, m *unix.Msghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return int(n), errno
}

// errNoPort says that every port of the host is in use towards a server.
var errNoPort = errors.New("the host has no port left towards that server")

// connect makes a socket and begins to connect it to e. Its segments have the TTL and traffic class of h. It returns
// the error of a connect that fails at once; connected returns that of a connect that fails later.
func connect(e packet.Endpoint, h head) (fd int, err error) {
	family := unix.AF_INET6
	if e.Addr.Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = tune(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	h.apply(fd)
	if err = unix.Connect(fd, sockaddr(e)); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		if err == unix.EADDRNOTAVAIL && hasSource(family, e) {
			return -1, errNoPort
		}
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// hasSource reports whether the host has an address from which it can reach e. It tries with a UDP socket, whose ports
// are separate from those of TCP.
func hasSource(family int, e packet.Endpoint) bool {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sockaddr(e)) != unix.EADDRNOTAVAIL
}

// tune sets the options of every host socket here: small writes are not delayed, keep-alive probes detect a far end
// that is gone, and urgent data stays in the stream (RFC 6093 6).
func tune(fd int) error {
	for _, o := range [...]struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return alive.Keep(fd)
}

func sockaddr(e packet.Endpoint) unix.Sockaddr {
	if e.Addr.Is4() {
		return &unix.SockaddrInet4{Port: int(e.Port), Addr: [4]byte(e.Addr[12:])}
	}
	return &unix.SockaddrInet6{Port: int(e.Port), Addr: e.Addr}
}

// connected returns the result of a connect of a socket that sends with h; nil means success.
func connected(fd int, h head) error {
	err := pending(fd)
	if h.usual() {
		return err
	}
	if err == nil {
		h.hear(fd, false)
		return nil
	}
	dgram.Hear(fd, func(e dgram.Error) { err = saidBy{err, e.Why, e.By} })
	return err
}

// pending returns the pending error of the socket; nil means none.
func pending(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return unix.EIO
	}
	if n == 0 {
		return nil
	}
	return unix.Errno(n)
}

// detach takes the descriptor of a connection away from the standard library: it returns a duplicate that the runtime's
// poller does not know, and closes c.
func detach(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, os.NewSyscallError("fcntl", dupErr)
	}
	if err := tune(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, c.Close()
}

// hangUp closes the connection's socket, with a reset unless the end is clean. The caller holds mu.
func (c *conn) hangUp(clean bool) {
	if clean && c.pretence != nil {
		resetAtExit(c.fd, false) // what was written last may still be on its way
	}
	if c.slot == noSlot {
		hangUp(c.fd, clean)
		return
	}
	// Somebody else holds the socket for a while longer, so that closing it does nothing.
	if !clean {
		reset(c.fd)
	}
	if c.r.hold.end(c) {
		hangUp(c.fd, clean)
	}
}

// untouched reports whether the pod has neither acknowledged any byte of the client nor said one, so that the
// connection, which was in state was, can be made to another pod. What the client has said is still in its socket then,
// if it is only peeked at. The caller holds mu.
func (c *conn) untouched(was state) bool {
	f := &c.from
	switch was {
	case greeting:
		return true
	case open:
		return c.peeks && uint32(c.acked.Load()>>32) == c.first && f.next == f.first && !f.fin && !f.lost && f.earlyLen == 0 && len(f.gathered) == 0
	}
	return false
}

// giveBack keeps the client's socket for whoever has joined the connection, and releases the connection's own
// descriptor of it. It reports whether it could.
func (c *conn) giveBack() bool {
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	client, err := net.FileConn(f)
	if err != nil {
		return false
	}
	c.spare = client.(*net.TCPConn)
	setLow(c.fd, 1)
	if c.slot == noSlot || c.r.hold.end(c) {
		unix.Close(c.fd)
	}
	return true
}

// hangUp closes a socket, with a reset unless the end is clean.
func hangUp(fd int, clean bool) {
	if !clean {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.Close(fd)
}

// reset resets the far end of a socket at once, whoever has a duplicate of it (connect(2), AF_UNSPEC).
func reset(fd int) {
	var none unix.RawSockaddr // AF_UNSPEC
	_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
}

func endpoint(a netip.AddrPort) packet.Endpoint {
	return packet.EndpointFrom(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
}
