package nodeport

import (
	"context"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share/conns"
)

// Acceptor accepts the connections of a listener (Options.Accept).
type Acceptor interface {
	// Wait waits until accepting fails or Close was called. It returns how many connections were accepted since the
	// Wait before. Nothing is accepted from then on until the next Wait.
	Wait() (accepted int, err error)
	// Close may be called again.
	Close()
}

// serveBy serves what an Acceptor accepts, until s is no longer wanted.
func (s *server) serveBy(a Acceptor) {
	defer a.Close()
	defer context.AfterFunc(s.ctx, a.Close)()
	for f := (failing{}); ; {
		accepted, err := a.Wait()
		if accepted > 0 {
			f = failing{}
		}
		if !f.wait(s, err) {
			return
		}
	}
}

// arriveNow begins to serve an accepted connection, and does not block. If its turn comes at once, the connection is
// opened here and needs no goroutine, neither now nor later: to wake one costs more than the rest.
func (p *Proxy) arriveNow(client *socketConn, v visit) {
	if conns.GoneSocket(client.fd) {
		abort(client)
		return
	}
	if v.turn = p.openings.admit(client, addressing.Client(v.from.Addr())); v.turn == nil {
		abort(client)
		return
	}
	if v.at.proxy == 0 && v.turn.now() {
		p.adopt(client, v)
	} else {
		p.connectLater(client, v)
	}
}

// connectLater serves a client in a goroutine of its own.
func (p *Proxy) connectLater(client io.Closer, v visit) {
	end := func() {}
	if v.at.proxy != 0 {
		p.dying.Begin()
		end = p.dying.End
	}
	if !p.spawn(func() { defer end(); p.connect(client, v) }) {
		end()
		v.turn.leave()
		abort(client)
	}
}

// adopt opens the connection of a client whose turn it is.
func (p *Proxy) adopt(client *socketConn, v visit) {
	f, ok := p.choose(v.from, v.at, packet.TCP)
	if !ok {
		v.turn.leave()
		abort(client)
		return
	}
	o := &opening{use: p.opts.Begin(&f.tuple, f.choice), turn: v.turn}
	ended := func(left *net.TCPConn) {
		p.adopted.Add(-1)
		defer o.use.End()
		if left == nil {
			v.turn.leave()
			return
		}
		o.refused()
		if !p.spawn(func() { p.askAnother(left, v, f) }) {
			v.turn.leave()
			abort(left)
		}
	}
	p.adopted.Add(1)
	if p.opts.Adopt(client.fd, f.client, f.backend, o.answered, ended) {
		return
	}
	p.adopted.Add(-1)
	o.use.End()
	p.connectLater(client, v)
}

// askAnother serves a client whom f's backend has refused.
func (p *Proxy) askAnother(client net.Conn, v visit, f flow) {
	defer v.turn.leave()
	refused := []uint64{f.choice.Backend}
	f, ok := p.instead(f, refused)
	if !ok || conns.Gone(client) {
		abort(client)
		return
	}
	p.ask(client, v, f, refused)
}

// spawn runs f in a goroutine for which Close waits. It returns false if the Proxy is closed already.
func (p *Proxy) spawn(f func()) bool {
	p.life.Lock()
	defer p.life.Unlock()
	if p.closed {
		return false
	}
	p.wg.Go(f)
	return true
}

// socketConn is a connection of which only the socket is known.
type socketConn struct {
	fd int

	mu     sync.Mutex
	closed bool // or not its own any longer
}

// take reports whether the socket belonged to c until now.
func (c *socketConn) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.closed
	c.closed = true
	return !was
}

// Close implements io.Closer. Further calls do nothing.
func (c *socketConn) Close() error {
	if !c.take() {
		return nil
	}
	return unix.Close(c.fd)
}

// SetLinger is for abort.
func (c *socketConn) SetLinger(seconds int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	return unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(seconds)})
}

// asConn returns an accepted connection as one of the standard library.
func asConn(c io.Closer) (net.Conn, error) {
	s, ok := c.(*socketConn)
	if !ok {
		return c.(net.Conn), nil
	}
	if !s.take() {
		return nil, net.ErrClosed
	}
	f := os.NewFile(uintptr(s.fd), "client")
	defer f.Close()
	return net.FileConn(f)
}
