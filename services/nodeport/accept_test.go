package nodeport

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// byHand is an Acceptor without a poller.
type byHand struct {
	mu     sync.Mutex
	closed bool
	failed chan error
}

func (a *byHand) Wait() (int, error) { return 0, <-a.failed }

func (a *byHand) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		a.closed = true
		a.failed <- net.ErrClosed
	}
}

// acceptByHand is an Options.Accept.
func acceptByHand(l net.Listener, each func(fd int, client netip.AddrPort)) Acceptor {
	a := &byHand{failed: make(chan error, 1)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			raw, err := c.(*net.TCPConn).SyscallConn()
			fd := -1
			if err == nil {
				err = raw.Control(func(old uintptr) { fd, _ = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
			}
			from, ferr := addrPort(c.RemoteAddr())
			_ = c.Close()
			a.mu.Lock()
			if err == nil && ferr == nil && !a.closed {
				each(fd, from)
			} else {
				unix.Close(fd)
			}
			a.mu.Unlock()
		}
	}()
	return a
}

// adoptBy returns an Options.Adopt that joins a client as join does, and adopts none without it.
func adoptBy(t *testing.T, join func(context.Context, *net.TCPConn, netip.AddrPort, netip.AddrPort, func(bool)) (*net.TCPConn, bool),
) func(int, netip.AddrPort, netip.AddrPort, func(bool), func(*net.TCPConn)) bool {
	return func(fd int, client, backend netip.AddrPort, answered func(bool), ended func(*net.TCPConn)) bool {
		if join == nil {
			return false
		}
		c, err := asConn(&socketConn{fd: fd})
		if err != nil {
			t.Error(err)
			return false
		}
		go func() {
			left, _ := join(context.Background(), c.(*net.TCPConn), client, backend, answered)
			ended(left)
		}()
		return true
	}
}

// A client that is adopted needs no goroutine. Its Use hears of the answer and of the end, and it is counted until
// then.
func TestAdopt(t *testing.T) {
	u := told{new(atomic.Int32), new(atomic.Int32), new(atomic.Int32)}
	type adoption struct {
		fd    int
		ended func(*net.TCPConn)
	}
	adopted := make(chan adoption, 10)
	w, p := newWorld(t, func(o *Options) {
		o.Begin = func(*packet.Tuple, packet.Choice) Use { return u }
		o.Accept = acceptByHand
		o.Adopt = func(fd int, _, _ netip.AddrPort, answered func(bool), ended func(*net.TCPConn)) bool {
			answered(true)
			adopted <- adoption{fd, ended}
			return true
		}
	})
	w.choose(1, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	client := dialFrom(t, "tcp", "127.0.0.2", port)
	one := <-adopted
	if n := p.Stats().Conns; n != 1 || u.answered.Load() != 1 || u.ended.Load() != 0 {
		t.Errorf("%d connections, %d answers, %d ends", n, u.answered.Load(), u.ended.Load())
	}
	unix.Close(one.fd)
	one.ended(nil)
	if n := p.Stats().Conns; n != 0 || u.ended.Load() != 1 {
		t.Errorf("after the end %d connections, %d ends", n, u.ended.Load())
	}
	_ = client.SetDeadline(time.Now().Add(await.Patience))
	if _, err := io.ReadAll(client); err != nil {
		t.Error(err)
	}
}

// oneTurn gives somebody the only turn until over is called.
func oneTurn(o *openings) (over func()) {
	o.mu.Lock()
	o.most = 1
	o.mu.Unlock()
	a := o.admit(io.NopCloser(nil), netip.MustParsePrefix("192.0.2.8/32"))
	o.mu.Lock()
	defer o.mu.Unlock()
	a.since = time.Now().Add(time.Hour)
	return a.leave
}

// A client that resets while it waits for its turn leaves no descriptor.
func TestAdoptGone(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a finalizer would close what was forgotten
	_, p := newWorld(t, func(o *Options) {
		o.Accept = acceptByHand
		o.Adopt = func(int, netip.AddrPort, netip.AddrPort, func(bool), func(*net.TCPConn)) bool { return false }
	})
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	over := oneTurn(p.openings)
	c := dialFrom(t, "tcp", "127.0.0.2", port).(*net.TCPConn)
	waiting := func() int {
		p.openings.mu.Lock()
		defer p.openings.mu.Unlock()
		return p.openings.line.Len()
	}
	await.Until(t, "the client waits", func() bool { return waiting() == 1 })
	open := openSockets(t) // one of them the client's own
	_ = c.SetLinger(0)
	_ = c.Close()
	over()
	await.Until(t, "both ends are closed", func() bool { return openSockets(t) == open-2 })
}

// A client that has reset before it is accepted takes no place in the line.
func TestResetClientsAreNotAdmitted(t *testing.T) {
	_, p := newWorld(t)
	defer oneTurn(p.openings)() // whoever is admitted waits
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the reset has come", func() bool { return conns.Gone(accepted) })
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	client := &socketConn{}
	_ = raw.Control(func(fd uintptr) { client.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	_ = accepted.Close()
	if err != nil {
		t.Fatal(err)
	}
	p.arriveNow(client, visit{from: netip.MustParseAddrPort("192.0.2.9:1")})
	if n := p.openings.line.Len(); n != 0 || client.take() {
		t.Errorf("%d clients wait, and the socket is closed: %v", n, client.closed)
	}
}

// openSockets returns how many sockets this process has.
func openSockets(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// A client that has to wait for its turn is served when that comes, as is one that cannot be adopted.
func TestAdoptLater(t *testing.T) {
	w, p := newWorld(t, func(o *Options) {
		o.Accept = acceptByHand
		o.Adopt = func(int, netip.AddrPort, netip.AddrPort, func(bool), func(*net.TCPConn)) bool { return false }
	})
	w.choose(1, tcpBackend(t, echo("one")))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	served := func() {
		t.Helper()
		c := dialFrom(t, "tcp", "127.0.0.2", port).(*net.TCPConn)
		_ = c.SetDeadline(time.Now().Add(await.Patience))
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "one\n" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	served()
	for range mostOpening() { // of another client, whose turns end by themselves
		a := p.openings.admit(io.NopCloser(nil), netip.MustParsePrefix("192.0.2.9/32"))
		if !a.now() {
			t.Fatal("somebody has a turn")
		}
		defer a.leave()
	}
	served()
}
