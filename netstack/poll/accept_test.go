package poll_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/test/await"
)

// accepted is what an Acceptor has brought.
type accepted struct {
	fd   int
	from netip.AddrPort
}

// acceptOf accepts what comes to a listener in p.
func acceptOf(t *testing.T, p *poll.Poller, l net.Listener) (*poll.Acceptor, chan accepted) {
	t.Helper()
	came := make(chan accepted, 100)
	a, err := p.Accept(l.(*net.TCPListener), func(fd int, from netip.AddrPort) { came <- accepted{fd, from} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a, came
}

// Connections of both families are accepted, with their clients' addresses, and do not block.
func TestAccept(t *testing.T) {
	p := newPoller(t, 2)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		a, came := acceptOf(t, p, l)
		for range 40 { // more than one turn
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got := <-came
			if want := c.LocalAddr().(*net.TCPAddr).AddrPort(); got.from != want {
				t.Errorf("the client is %s, want %s", got.from, want)
			}
			if _, err := unix.Read(got.fd, make([]byte, 1)); err != unix.EAGAIN {
				t.Errorf("a read of nothing gives %v", err)
			}
			unix.Close(got.fd)
		}
		a.Close()
		if n, err := a.Wait(); n != 40 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed, %d were accepted, %v", n, err)
		}
	}
}

// Clients that wait are accepted in turns, between which others are handled.
func TestAcceptTurn(t *testing.T) {
	const turn, clients = 16, 40
	p := newPoller(t, 1)
	other, far := newEnd(t, p, true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for range clients {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	came := make(chan int, clients)
	a, err := p.Accept(l.(*net.TCPListener), func(fd int, _ netip.AddrPort) {
		if len(came) == 0 {
			_, _ = far.WriteString("other")
		}
		unix.Close(fd)
		came <- len(other.heard)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	await.Until(t, "all are accepted", func() bool { return len(came) == clients })
	for i := range clients {
		if heard := <-came; (heard == 1) != (i >= turn) {
			t.Errorf("before client %d others were handled %d times", i, heard)
		}
	}
}

// Where accepting fails, Wait tells, and nothing is accepted until the next Wait.
func TestAcceptFails(t *testing.T) {
	p := newPoller(t, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	same, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	a, came := acceptOf(t, p, l)
	raw, err := same.SyscallConn() // Fd would make it block
	if err != nil {
		t.Fatal(err)
	}
	control := func(f func(fd int) error) {
		t.Helper()
		if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
	}
	type result struct {
		n   int
		err error
	}
	results := make(chan result, 1)
	wait := func() {
		n, err := a.Wait()
		results <- result{n, err}
	}
	go wait()
	control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	select {
	case r := <-results:
		if r.n != 0 || !errors.Is(r.err, unix.EINVAL) {
			t.Fatalf("%d were accepted, %v", r.n, r.err)
		}
	case <-time.After(await.Patience):
		t.Fatal("nobody is told that accepting fails")
	}
	port := 0 // it has another one now
	control(func(fd int) error {
		if err := unix.Listen(fd, 10); err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err == nil {
			port = sa.(*unix.SockaddrInet4).Port
		}
		return err
	})
	c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if len(came) != 0 {
		t.Error("a connection was accepted before the next Wait")
	}
	go wait()
	unix.Close((<-came).fd)
	a.Close()
	if r := <-results; r.n != 1 || !errors.Is(r.err, net.ErrClosed) {
		t.Errorf("closed, %d were accepted, %v", r.n, r.err)
	}
}

// A listener of a Poller that is closed is not taken.
func TestAcceptAfterClose(t *testing.T) {
	p := newPoller(t, 1)
	_ = p.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := p.Accept(l.(*net.TCPListener), nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("accept in a closed poller: %v", err)
	}
}
