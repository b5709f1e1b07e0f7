package poll

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// acceptTurn is the number of connections of one listener that are accepted before other descriptors get their turn.
const acceptTurn = 16

// Acceptor accepts the connections of a listening socket in the loops of a Poller. So a connection is accepted, and
// what follows is done, without a wake-up of another thread.
type Acceptor struct {
	fd   int // a duplicate, the only one of this process
	each func(fd int, from netip.AddrPort)

	mu       sync.Mutex // held while connections are accepted; guards what follows
	watch    *Watch
	accepted int  // since the last Wait
	rests    bool // accept(2) has failed, and no Wait has begun since
	closed   bool
	failed   chan error // gets the error of accept(2), or net.ErrClosed
}

// Listener is a TCP listener of the host's kernel.
type Listener interface {
	syscall.Conn
	io.Closer
}

// Accept accepts the connections of a TCP listener, which it takes over, unless it returns an error. It calls each,
// which must not block, with each connection's descriptor, which does not block either and belongs to the one who is
// called, and the address of the client, without a zone.
func (p *Poller) Accept(l Listener, each func(fd int, from netip.AddrPort)) (*Acceptor, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	a := &Acceptor{each: each, failed: make(chan error, 2)}
	var dupErr error
	if err := raw.Control(func(fd uintptr) { a.fd, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("accept in a poller: %w", os.NewSyscallError("fcntl", dupErr))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.watch, err = p.Add(a.fd, a, unix.EPOLLIN); err != nil {
		unix.Close(a.fd)
		return nil, fmt.Errorf("accept in a poller: %w", err)
	}
	_ = l.Close() // its duplicate listens on
	return a, nil
}

// Wait waits until accept(2) fails, as it does when there are no free descriptors, or the Acceptor is closed, which
// gives net.ErrClosed. After an error of accept(2) it accepts nothing until the next Wait. Wait also returns how many
// connections were accepted since the one before.
func (a *Acceptor) Wait() (accepted int, err error) {
	a.mu.Lock()
	if a.rests && len(a.failed) == 0 {
		a.rests = false
		a.watch.Arm(unix.EPOLLIN)
	}
	a.mu.Unlock()
	err = <-a.failed
	a.mu.Lock()
	defer a.mu.Unlock()
	accepted, a.accepted = a.accepted, 0
	return accepted, err
}

// Close accepts no more. It waits for the calls of each that are in progress, and may be called again.
func (a *Acceptor) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	a.watch.Close()
	unix.Close(a.fd)
	a.failed <- net.ErrClosed
}

// Ready implements Handler.
func (a *Acceptor) Ready(_ uint32, buf []byte) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range acceptTurn {
		if a.closed || a.rests { // called without an event
			return buf
		}
		fd, from, err := accept(a.fd)
		switch {
		case err == nil:
			a.accepted++
			a.each(fd, from)
			a.watch.Lasts()
		case errors.Is(err, unix.EAGAIN):
			a.watch.Arm(unix.EPOLLIN)
			return buf
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		default:
			a.rests = true
			a.failed <- os.NewSyscallError("accept4", err)
			return buf
		}
	}
	a.watch.Arm(unix.EPOLLIN)
	return buf
}

// accept is accept4(2). A raw call does not tell the Go runtime, for which a call that does not block is the dearer
// one.
func accept(listener int) (fd int, from netip.AddrPort, err error) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, from, errno
	}
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		from = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), order(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&sa))
		// To ask the kernel for the name of a zone may take long.
		from = netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), order(in.Port))
	}
	return int(n), from, nil
}

// order returns a port that is in the order of the network.
func order(port uint16) uint16 {
	b := *(*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}
