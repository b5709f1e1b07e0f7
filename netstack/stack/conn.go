package stack

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// conn is a TCP connection that ends in the stack.
type conn struct {
	*gonet.TCPConn
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	kept  *kept
	claim dialClaim
}

var _ io.ReaderFrom = (*conn)(nil)

var (
	// errPortInUse says that another connection to the same remote address uses the local address and port.
	errPortInUse = errors.New("the local port is in use")
	// ErrNoPort says that nearly all local ports are in use towards the remote address and port.
	ErrNoPort = errors.New("no local port is free towards that address and port")
)

const (
	// portTries is how many local ports are tried. While three of four are free, all tries fail once in 10^19 times.
	portTries = 32
	// finWait is how long a connection waits for the pod's end after it was closed. By then the pod has all data.
	finWait = 5 * time.Second
)

// dialTCP connects from local to remote, and picks a port when local has none. own says that the connection is the
// node's own; otherwise it is charged to its client.
//
// The ports of gVisor's own choice are those of one pool for all destinations, and a search for a free one locks out
// every other search. A port picked here needs to be free towards one destination only.
func (s *Stack) dialTCP(ctx context.Context, local, remote tcpip.FullAddress, own bool) (*conn, error) {
	if local.Port != 0 {
		return s.dialFrom(ctx, local, remote, own)
	}
	first, last := s.stack.PortRange()
	for range portTries {
		local.Port = first + uint16(rand.N(uint32(last-first)+1))
		if c, err := s.dialFrom(ctx, local, remote, own); !errors.Is(err, errPortInUse) {
			return c, err
		}
	}
	return nil, ErrNoPort
}

// dialFrom is dialTCP from the very port of local.
func (s *Stack) dialFrom(ctx context.Context, local, remote tcpip.FullAddress, own bool) (*conn, error) {
	var wq waiter.Queue
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(fromAddress(remote.Addr)), &wq)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	c := &conn{ep: ep, wq: &wq}
	if err := s.prepare(ctx, c, local, remote, own); err != nil {
		c.kept.release()
		c.claim.release()
		ep.Close()
		return nil, err
	}
	c.TCPConn = gonet.NewTCPConn(&wq, ep)
	return c, nil
}

// prepare charges the connection and connects the endpoint of c.
func (s *Stack) prepare(ctx context.Context, c *conn, local, remote tcpip.FullAddress, own bool) (err error) {
	if own {
		s.dials.acquireOwn(&c.claim, c.ep)
	} else if err := s.dials.acquire(&c.claim, fromAddress(local.Addr), c.ep); err != nil {
		return err
	}
	c.ep.SocketOptions().SetReuseAddress(true) // connections to different destinations may have the same port
	wait := tcpip.TCPLingerTimeoutOption(finWait)
	if terr := c.ep.SetSockOpt(&wait); terr != nil {
		return toError(terr)
	}
	if terr := c.ep.Bind(local); terr != nil {
		return toError(terr)
	}
	if terr := keepAlive(c.ep); terr != nil {
		return toError(terr)
	}
	if c.kept, err = s.keep(c.ep, remote); err != nil {
		return err
	}
	return connect(ctx, c.ep, c.wq, remote)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.kept.release()
	c.claim.release()
	return c.TCPConn.Close()
}

func connect(ctx context.Context, ep tcpip.Endpoint, wq *waiter.Queue, remote tcpip.FullAddress) error {
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr := ep.Connect(remote)
	// So Connect says that another connection has both addresses and ports.
	if _, taken := terr.(*tcpip.ErrBadLocalAddress); taken {
		return errPortInUse
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-writable:
		}
		terr = ep.LastError()
	}
	return toError(terr)
}

func toError(terr tcpip.Error) error {
	switch terr.(type) {
	case nil:
		return nil
	case *tcpip.ErrPortInUse:
		return errPortInUse
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED // as of a socket of the kernel
	}
	return errors.New(terr.String())
}

// superframePayload is the largest payload of a superframe of the stack (tcp.sender.sendData). Data in multiples of it
// leaves no small rest that would need a superframe of its own.
const superframePayload = gsoMaxSize - header.TCPTotalHeaderMaximumSize - 1

// ReadFrom implements io.ReaderFrom: it sends what it reads from r until r ends. From a TCP connection of the kernel it
// reads straight into the stack's buffers, each time as many bytes as are available. Write deadlines have no effect on
// it.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if k, ok := r.(*net.TCPConn); ok {
		return c.readFromKernel(k)
	}
	return io.Copy(struct{ io.Writer }{c.TCPConn}, r) // the wrapper hides this method
}

func (c *conn) readFromKernel(k *net.TCPConn) (sent int64, err error) {
	raw, err := k.SyscallConn()
	if err != nil {
		return 0, err
	}
	if err := inline(raw); err != nil {
		return 0, err
	}
	c.kept.joined(raw)
	src := newKernelReader(raw)
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	for {
		if err := src.wait(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return sent, err
		}
		for src.left > 0 {
			n, terr := c.ep.Write(src, tcpip.WriteOptions{})
			sent += n
			switch terr.(type) {
			case nil:
			case *tcpip.ErrWouldBlock:
				<-writable
			case *tcpip.ErrBadBuffer: // src failed
				return sent, src.err
			default:
				return sent, &net.OpError{Op: "write", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: errors.New(terr.String())}
			}
		}
	}
}

// inline makes a kernel socket leave urgent data in the stream, from which the kernel would otherwise remove it (RFC
// 6093 6).
func inline(raw syscall.RawConn) error {
	var serr error
	err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	return errors.Join(err, os.NewSyscallError("setsockopt", serr))
}

// kernelReader reads what a TCP socket of the kernel has received. It is a tcpip.Payloader. Its length is never more
// than what is available, because the stack treats a short read as a failure and drops what it has read before.
type kernelReader struct {
	raw  syscall.RawConn
	left int // bytes that are available and not read yet; set by wait
	err  error

	p     []byte // where Read puts the data
	n     int
	ready func(fd uintptr) bool // sets left; false when no bytes are available
	read  func(fd uintptr) bool
}

var _ tcpip.Payloader = (*kernelReader)(nil)

// newKernelReader makes the reader's functions once, because a closure for each call would allocate.
func newKernelReader(raw syscall.RawConn) *kernelReader {
	r := &kernelReader{raw: raw}
	r.ready = func(fd uintptr) bool {
		r.left, r.err = pending(int(fd))
		return r.left > 0 || r.err != nil
	}
	r.read = func(fd uintptr) bool {
		for {
			if r.n, r.err = unix.Read(int(fd), r.p); r.err != unix.EINTR {
				return true
			}
		}
	}
	return r
}

// pending returns how many bytes a socket has received: a multiple of whole superframes if there is at least one, 0
// when nothing has come yet, and io.EOF at the end of the stream.
func pending(fd int) (int, error) {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return 0, os.NewSyscallError("SIOCINQ", err)
	}
	if n >= superframePayload {
		return n - n%superframePayload, nil
	}
	if n > 0 {
		return n, nil
	}
	var b [1]byte
	n, _, err = unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("recvfrom", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// wait waits until data is available. It returns io.EOF at the end of the stream.
func (r *kernelReader) wait() error {
	if err := r.raw.Read(r.ready); err != nil {
		return err
	}
	return r.err
}

// Len implements tcpip.Payloader.
func (r *kernelReader) Len() int { return r.left }

// Read implements tcpip.Payloader.
func (r *kernelReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	r.p = p[:min(len(p), r.left)]
	if err := r.raw.Read(r.read); err != nil {
		r.err = err
	}
	r.p = nil
	if r.err == nil && r.n == 0 {
		r.err = io.ErrUnexpectedEOF // SIOCINQ has reported more
	}
	if r.err != nil {
		return 0, r.err
	}
	r.left -= r.n
	return r.n, nil
}
