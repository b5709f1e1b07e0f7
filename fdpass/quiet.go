package fdpass

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is the part of a Conn that is in use once it is quiet. The runtime's poller wakes a thread for each message
// that comes, also while nobody receives, and for each that the other end has received. With thousands of messages a
// second this costs more than they do.
type quiet struct {
	file atomic.Pointer[os.File] // nil as long as the Conn is not quiet; a call by it blocks a thread

	mu     sync.Mutex
	closed bool // Close was called
}

// Quiet makes messages that come while nobody receives wake no thread, nor those that the other end receives. From then
// on Receive keeps a thread, and of the other methods only TrySend, ReceiveUntil, More, Gone, Peer and Close may be
// called. It must not be called while another goroutine receives.
func (c *Conn) Quiet() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.file.Load() != nil {
		return nil
	}
	fd := -1
	err := control(c.conn, func(old int) (err error) {
		if fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("dup", err)
		}
		return os.NewSyscallError("fcntl", unix.SetNonblock(fd, false))
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return err
	}
	c.file.Store(os.NewFile(uintptr(fd), "quiet"))
	_ = c.conn.Close() // its duplicate goes on
	return nil
}

// end closes the connection, and ends a Receive that is in progress.
func (q *quiet) end(conn *net.UnixConn) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := q.file.Load()
	if f == nil || q.closed {
		q.closed = true
		return conn.Close()
	}
	q.closed = true
	_ = control(f, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	return f.Close() // the descriptor is closed when the last call by it has returned
}

func (q *quiet) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// wakeReceiver ends a Receive that is in progress. Nothing is received after it.
func (q *quiet) wakeReceiver(conn *net.UnixConn) {
	if f := q.file.Load(); f != nil {
		_ = control(f, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) })
	} else {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
}

func (q *quiet) receiveQuietly(f *os.File, buf, oob []byte) (n, oobn, flags int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	err = unix.EINTR
	for err == unix.EINTR {
		if rerr := raw.Read(func(fd uintptr) bool {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
			return true
		}); rerr != nil {
			err = rerr
		}
	}
	switch {
	case q.isClosed():
		err = net.ErrClosed
	case err == nil && n == 0 && oobn == 0:
		err = io.EOF
	}
	return n, max(0, oobn), flags, err
}
