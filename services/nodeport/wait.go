package nodeport

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waiter is a connection whose reader needs no buffer while nothing arrives. WaitRead blocks until Read would not
// block. If the given time comes first, it returns os.ErrDeadlineExceeded.
type waiter interface{ WaitRead(until time.Time) error }

// waiterOf returns the waiter that c is, or one for a kernel UDP socket, or nil if there is neither.
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

// kernelWaiter is a waiter for a socket of the kernel.
type kernelWaiter struct {
	*net.UDPConn
	raw   syscall.RawConn
	look  func(fd uintptr) bool // peek as a func value, made once
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

// peek reports whether the socket has a datagram or an error. It leaves the datagram in the socket and takes the
// error.
func (w *kernelWaiter) peek(fd uintptr) bool {
	_, _, w.errno = unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&w.first)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return w.errno != unix.EAGAIN && w.errno != unix.EINTR
}
