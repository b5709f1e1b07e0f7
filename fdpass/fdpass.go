// Package fdpass carries JSON messages with file descriptors between processes over unix sockets of type
// SOCK_SEQPACKET. It knows who is at the other end. One message is one packet, so that a peer killed in the middle
// leaves no half message.
package fdpass

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is the largest message in bytes, as JSON.
	MaxMessage = 64 << 10
	// MaxFiles is the largest number of descriptors with one message; SCM_MAX_FD of the kernel is 253.
	MaxFiles = 128
)

// ErrBad says that the peer sent something that is not a message of this protocol. The connection cannot be used any
// more.
var ErrBad = errors.New("not a message of this protocol")

// Cred is who is at the other end, as the kernel knows it (SO_PEERCRED): the process that connected or listened.
type Cred struct {
	PID      int
	UID, GID uint32
}

// Conn is one connection. Receive and Send may be called by one goroutine each.
type Conn struct {
	conn *net.UnixConn // nothing is sent or received by it once the Conn is quiet
	quiet
	peer Cred
	buf  []byte
	oob  []byte // nil when descriptors are not accepted
}

// Dial connects to the socket at path. In a directory that everybody may write, it trusts only sockets of root and of
// this process's own user, since anybody may have put a socket there.
func Dial(ctx context.Context, path string) (*Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	uc := c.(*net.UnixConn)
	peer, err := peerOf(uc)
	if err == nil {
		err = believe(path, peer)
	}
	if err != nil {
		uc.Close()
		return nil, err
	}
	return newConn(uc, peer), nil
}

func newConn(c *net.UnixConn, peer Cred) *Conn {
	// The buffers hold one byte and one descriptor more than allowed, so that an excess is noticed and the descriptors
	// are closed.
	return &Conn{
		conn: c, peer: peer,
		buf: make([]byte, MaxMessage+1), oob: make([]byte, unix.CmsgSpace(4*(MaxFiles+1))),
	}
}

func peerOf(c *net.UnixConn) (Cred, error) {
	var u *unix.Ucred
	err := control(c, func(fd int) (err error) {
		u, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil {
		return Cred{}, fmt.Errorf("ask who is at the other end: %w", err)
	}
	return Cred{int(u.Pid), u.Uid, u.Gid}, nil
}

// control calls f with the descriptor. It does not use Fd, which would make the open file blocking for every process
// that shares it.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// Dup duplicates f's descriptor, close-on-exec. The caller must close it.
func Dup(f *os.File) (int, error) {
	if f == nil {
		return -1, os.ErrInvalid
	}
	dup := -1
	err := control(f, func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("dup", err)
	})
	return dup, err
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Peer returns who is at the other end.
func (c *Conn) Peer() Cred { return c.peer }

// Close ends the connection.
func (c *Conn) Close() error { return c.end(c.conn) }

// socket is what the descriptor belongs to.
func (c *Conn) socket() syscall.Conn {
	if f := c.file.Load(); f != nil {
		return f
	}
	return c.conn
}

// Gone reports whether the other end has closed, even when data that it sent before was not read yet.
func (c *Conn) Gone() bool {
	// It fails while the Conn becomes quiet, or is closed.
	is, _ := c.is(unix.POLLRDHUP, unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR)
	return is || c.isClosed()
}

// More reports whether Receive would return at once.
func (c *Conn) More() bool {
	is, err := c.is(unix.POLLIN, unix.POLLIN|unix.POLLHUP|unix.POLLERR)
	return is || err != nil
}

// is reports whether one of events has happened, after a poll(2) for asked that does not wait.
func (c *Conn) is(asked, events int16) (is bool, err error) {
	err = control(c.socket(), func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: asked}}
		n, err := unix.Poll(p, 0)
		is = n == 1 && p[0].Revents&events != 0
		return err
	})
	return is, err
}

// crowdedTime is how long Send waits for room for descriptors, and crowdedPause is the time between two attempts.
const (
	crowdedTime  = 3 * time.Second
	crowdedPause = 5 * time.Millisecond
)

// Send sends v as JSON with duplicates of the descriptors. The kernel lets a user have no more descriptors under way,
// sent and not yet received, than one process may have open (RLIMIT_NOFILE), whichever of the user's processes sent
// them. While there are too many, Send waits for a moment.
func (c *Conn) Send(v any, fds ...int) error {
	b, oob, err := encode(v, fds)
	if err != nil {
		return err
	}
	for begun := time.Now(); ; {
		_, _, err := c.conn.WriteMsgUnix(b, oob, nil)
		switch {
		case !errors.Is(err, unix.ETOOMANYREFS): // otherwise nothing was sent
			return err
		case time.Since(begun) > crowdedTime:
			return fmt.Errorf("processes of user %d have sent too many descriptors that nobody has received: end those, or give this program a user of its own: %w", os.Geteuid(), err)
		}
		<-time.After(crowdedPause)
	}
}

// ErrFull says that the other end has not received enough of what was sent before.
var ErrFull = errors.New("the other end has not received what was sent before")

// TrySend is Send, but returns ErrFull, and has sent nothing, where Send would wait.
func (c *Conn) TrySend(v any, fds ...int) error {
	b, oob, err := encode(v, fds)
	if err != nil {
		return err
	}
	err = control(c.socket(), func(fd int) error { return unix.Sendmsg(fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) })
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ETOOMANYREFS):
		return ErrFull
	}
	return err
}

// encode returns the two parts of a message.
func encode(v any, fds []int) (b, oob []byte, err error) {
	var msg bytes.Buffer
	enc := json.NewEncoder(&msg)
	enc.SetEscapeHTML(false) // escaping would make raw JSON longer than the limits it was checked for
	if err := enc.Encode(v); err != nil {
		return nil, nil, err
	}
	if b = msg.Bytes(); len(b) > MaxMessage || len(fds) > MaxFiles {
		return nil, nil, fmt.Errorf("message of %d bytes with %d descriptors: at most %d and %d are allowed", len(b), len(fds), MaxMessage, MaxFiles)
	}
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return b, oob, nil
}

// ReceiveUntil is Receive, but returns an error when ctx ends. Messages can still be sent then, and none received.
func (c *Conn) ReceiveUntil(ctx context.Context, v any) ([]int, error) {
	stop := context.AfterFunc(ctx, func() { c.wakeReceiver(c.conn) })
	defer stop()
	return c.Receive(v)
}

// Receive reads the next message into v. The descriptors that came with the message belong to the caller, who closes
// them. The error is io.EOF when the other end has closed, and wraps ErrBad when it sent garbage. With an error no
// descriptors are returned.
func (c *Conn) Receive(v any) ([]int, error) {
	n, oobn, flags, err := c.receive()
	fds, perr := parseRights(c.oob[:oobn])
	if c.oob == nil {
		flags &^= unix.MSG_CTRUNC // set for descriptors that were left to the kernel
	}
	switch {
	case err != nil:
	case perr != nil:
		err = fmt.Errorf("%w: %v", ErrBad, perr)
	case flags&unix.MSG_CTRUNC != 0 && len(fds) < MaxFiles:
		err = errors.New("descriptors were lost: this process has too many open files, or may not take them")
	case flags&unix.MSG_CTRUNC != 0 || len(fds) > MaxFiles:
		err = fmt.Errorf("%w: more than %d descriptors", ErrBad, MaxFiles)
	case flags&unix.MSG_TRUNC != 0 || n > MaxMessage:
		err = fmt.Errorf("%w: more than %d bytes", ErrBad, MaxMessage)
	default:
		if jerr := json.Unmarshal(c.buf[:n], v); jerr != nil {
			err = fmt.Errorf("%w: %v", ErrBad, jerr)
		}
	}
	if err != nil {
		CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

func (c *Conn) receive() (n, oobn, flags int, err error) {
	if f := c.file.Load(); f != nil {
		return c.receiveQuietly(f, c.buf, c.oob)
	}
	n, oobn, flags, _, err = c.conn.ReadMsgUnix(c.buf, c.oob)
	return n, oobn, flags, err
}

func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, perr := unix.ParseUnixRights(&msgs[i])
		fds, err = append(fds, got...), errors.Join(err, perr)
	}
	return fds, err
}

// Call sends a request and receives its answer. It closes the connection on any error, also when ctx ends first:
// otherwise the next call would take this answer for its own.
func (c *Conn) Call(ctx context.Context, request, answer any, fds ...int) ([]int, error) {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	got, err := c.call(request, answer, fds)
	if err == nil {
		return got, nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	_ = c.Close()
	return nil, err
}

func (c *Conn) call(request, answer any, fds []int) ([]int, error) {
	if err := c.Send(request, fds...); err != nil {
		return nil, err
	}
	got, err := c.Receive(answer)
	if errors.Is(err, io.EOF) {
		err = errors.New("the other end closed the connection without an answer")
	}
	return got, err
}
