package nodeport

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waiter is a connection whose reader need not hold a buffer while nothing comes. WaitRead waits until Read has
// something to give, and until a time at the latest, after which it is an os.ErrDeadlineExceeded.
type waiter interface{ WaitRead(until time.Time) error }

// waiterOf gives the waiter that c is, or that the kernel's sockets allow for; nil where there is none.
func waiterOf(c net.Conn) waiter {
	switch c := c.(type) {
	case waiter:
		return c
	case *net.UDPConn:
		raw, err := c.SyscallConn()
		if err != nil {
			return nil
		}
		w := &kernelWaiter{UDPConn: c, raw: raw}
		w.look = w.peek
		return w
	}
	return nil
}

// kernelWaiter waits at a socket of the kernel's.
type kernelWaiter struct {
	*net.UDPConn
	raw   syscall.RawConn
	look  func(fd uintptr) bool // peek, made once
	errno unix.Errno
	first byte
}

// WaitRead implements waiter.
func (w *kernelWaiter) WaitRead(until time.Time) error {
	if err := w.SetReadDeadline(until); err != nil {
		return err
	}
	if err := w.raw.Read(w.look); err != nil {
		return err
	}
	if w.errno != 0 {
		return os.NewSyscallError("recvfrom", w.errno)
	}
	return nil
}

// peek looks whether there is a datagram, or an error, which it takes.
func (w *kernelWaiter) peek(fd uintptr) bool {
	_, _, w.errno = unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&w.first)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return w.errno != unix.EAGAIN && w.errno != unix.EINTR
}
