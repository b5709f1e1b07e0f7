package nodeport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/share/conns"
)

type tcpSocket struct{ net.Listener }

func (l tcpSocket) serve(s *server) {
	arrive := func(fd int, from netip.AddrPort) {
		s.p.arriveNow(&socketConn{fd: fd}, visit{from: from, at: s.place()})
	}
	if a := s.p.opts.Accept(l.Listener, arrive); a != nil {
		s.serveBy(a)
		return
	}
	var f failing
	for {
		c, err := l.Accept()
		if err != nil {
			if !f.wait(s, err) {
				return
			}
			continue
		}
		f = failing{}
		s.p.arrive(c, s.place())
	}
}

// place is where connections come in, and the version of the PROXY protocol that is spoken to their backends, 0 for
// none.
type place struct {
	local netip.AddrPort
	proxy uint8
}

func (s *server) place() place { return place{s.key.local, s.proxy()} }

// visit is a client's connection on its way to a backend.
type visit struct {
	from netip.AddrPort
	at   place
	turn *arrival
}

// arrive begins to serve an accepted connection.
func (p *Proxy) arrive(client net.Conn, at place) {
	from, err := addrPort(client.RemoteAddr())
	if err != nil || conns.Gone(client) {
		abort(client)
		return
	}
	a := p.openings.admit(client, addressing.Client(from.Addr()))
	if a == nil {
		abort(client)
		return
	}
	p.connectLater(client, visit{from, at, a})
}

// mostRefusals is how many backends may refuse a client until it hears of that: as many as in the packet path (package
// knock).
const mostRefusals = 6

// connect serves one connection, a net.Conn or *socketConn, to its end, when its turn has come.
func (p *Proxy) connect(accepted io.Closer, v visit) {
	defer v.turn.leave()
	if !v.turn.wait(p.ctx) {
		abort(accepted)
		return
	}
	client, err := asConn(accepted)
	if err != nil {
		return // it is closed
	}
	if conns.Gone(client) {
		abort(client)
		return
	}
	if f, ok := p.choose(v.from, v.at, packet.TCP); ok {
		p.ask(client, v, f, nil)
	} else {
		abort(client)
	}
}

// ask serves one connection by f's backend, or another one, to its end. A backend that ends refuses connections before
// this node has heard that it ends, so another one is asked, and the client does not hear of the refusal. refused are
// those that have refused before f's.
func (p *Proxy) ask(client net.Conn, v visit, f flow, refused []uint64) {
	for ok := true; ok && p.hold(client); f, ok = p.instead(f, refused) {
		left := p.serve(client, f, v)
		p.release(client)
		if left == nil {
			return
		}
		client = left
		if refused = append(refused, f.choice.Backend); len(refused) == mostRefusals || conns.Gone(client) {
			break
		}
	}
	abort(client)
}

// serve serves a connection by one backend. It returns nil at the end of the connection, and the client's connection if
// the backend refuses: then nothing was read from it.
func (p *Proxy) serve(client net.Conn, f flow, v visit) (left net.Conn) {
	o := opening{use: p.opts.Begin(&f.tuple, f.choice), turn: v.turn}
	defer o.use.End()
	if c, ok := client.(*net.TCPConn); ok && v.at.proxy == 0 {
		if left, refused := p.opts.Join(p.ctx, c, f.client, f.backend, o.answered); refused {
			o.refused()
			return left
		} else if left == nil {
			return nil
		}
	}
	if v.at.proxy == 0 { // otherwise it is counted since it was accepted
		p.dying.Begin()
		defer p.dying.End()
	}
	var claim share.Claim[netip.Prefix, struct{}]
	if _, ok := p.dialled.Acquire(&claim, addressing.Client(v.from.Addr())); !ok {
		abort(client)
		return nil
	}
	defer p.dialled.Release(&claim)
	backend, err := p.dial(f)
	if err != nil {
		if p.ctx.Err() == nil {
			o.use.Refused()
		}
		if isRefusal(err) {
			return client
		}
		abort(client)
		return nil
	}
	if !p.hold(backend) {
		abort(client)
		abort(backend)
		return nil
	}
	defer p.release(backend)
	o.answered(true)
	if v.at.proxy != 0 && header(v.at.proxy, v.from, client.LocalAddr(), backend) != nil {
		abort(client)
		abort(backend)
		return nil
	}
	splice(client, backend)
	return nil
}

// opening is a connection to a backend that is being opened.
type opening struct {
	use  Use
	turn *arrival
	open bool
}

// answered is what Join and Adopt call.
func (o *opening) answered(yes bool) {
	if !yes {
		o.use.Refused()
		return
	}
	o.open = true
	o.use.Answered()
	o.turn.leave()
}

// refused says that the backend has refused the client, who may ask another one. If it has answered before, nobody was
// told of the refusal, and otherwise the fastest of all backends would be the one that ends.
func (o *opening) refused() {
	if o.open {
		o.use.Refused()
	}
}

// isRefusal reports whether a backend refused to be dialled. One that does not answer has cost the client more time
// than it has for another.
func isRefusal(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

func (p *Proxy) dial(f flow) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	return p.opts.Dial(ctx, "tcp", f.client, f.backend)
}

func addrPort(a net.Addr) (netip.AddrPort, error) {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	return netip.ParseAddrPort(a.String())
}

// lastWords is how long a connection that takes no more data is still read. If its end is gone, reading fails at once.
const lastWords = time.Minute

// splice copies both ways until both directions have ended, and closes both connections. It closes them with resets
// unless both directions ended in order.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	end, back := abort, false
	wg.Go(func() { back = forward(a, b) })
	forth := forward(b, a)
	wg.Wait()
	if back && forth {
		end = func(c io.Closer) { c.Close() }
	}
	end(a)
	end(b)
}

// forward copies from src to dst. If src ends in order, forward closes dst for writing and returns true. If reading
// fails, it resets both connections at once. If writing fails, dst may have sent something before, so forward leaves
// time for the other direction to bring this to src.
func forward(dst, src net.Conn) (orderly bool) {
	switch err := copyConn(dst, src); {
	case err == nil:
		if c, ok := dst.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
			dst.Close()
		}
		return true
	case isWrite(err) && dst.SetReadDeadline(time.Now().Add(lastWords)) == nil:
	default:
		abort(dst)
		abort(src)
	}
	return false
}

// isWrite reports whether an error comes from writing and not from reading.
func isWrite(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "write"
}

// abort closes a connection with a reset if it supports that.
func abort(c io.Closer) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	c.Close()
}

const (
	// idleBuf is the size in bytes of the buffer that a connection holds while it waits. Thousands may wait at the
	// same time.
	idleBuf = 4 << 10
	// bulkBuf is the size in bytes of the buffer for copying while there is more than idleBuf to read. The cost of
	// copying comes from system calls and wake-ups, not from bytes.
	bulkBuf = 256 << 10
)

var bulkBufs = sync.Pool{New: func() any { return new([bulkBuf]byte) }}

// copyConn copies src to dst until src ends.
func copyConn(dst, src net.Conn) error {
	kernel, fromKernel := src.(*net.TCPConn)
	_, toKernel := dst.(*net.TCPConn)
	// If only one end is a kernel socket, its own WriteTo or ReadFrom would copy in steps of 32 KiB. The WriteTo or
	// ReadFrom of the other end, if it has one, is faster.
	if w, ok := src.(io.WriterTo); ok && !fromKernel {
		_, err := w.WriteTo(dst)
		return err
	}
	if r, ok := dst.(io.ReaderFrom); ok && !toKernel {
		_, err := r.ReadFrom(src)
		return err
	}
	// The kernel could join two of its sockets with splice(2), but splice takes the bytes before urgent data for the
	// end of the stream.
	if fromKernel {
		if err := inline(kernel); err != nil {
			return err
		}
	}
	return copyBuffered(dst, src)
}

// inline makes a kernel socket leave urgent data in the stream. Without this option the kernel takes the data out (RFC
// 6093 6).
func inline(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	return errors.Join(err, os.NewSyscallError("setsockopt", serr))
}

func copyBuffered(dst io.Writer, src io.Reader) error {
	small := make([]byte, idleBuf)
	var bulk *[bulkBuf]byte
	defer func() {
		if bulk != nil {
			bulkBufs.Put(bulk)
		}
	}()
	for buf := small; ; {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch {
		case bulk == nil && n == len(buf):
			bulk = bulkBufs.Get().(*[bulkBuf]byte)
			buf = bulk[:]
		case bulk != nil && n < idleBuf:
			bulkBufs.Put(bulk)
			bulk, buf = nil, small
		}
	}
}
