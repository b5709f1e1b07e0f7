package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/share/conns"
)

// asking is a Server in a bubble whose backend is never reached.
type asking struct {
	*Server
	pipes
	served chan error
}

func newAsking(t *testing.T, o Options) *asking {
	o.Endpoints = endpointsIn
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	a := &asking{Server: New(o), pipes: make(pipes), served: make(chan error, 1)}
	if err := a.Set(anyRoute(netip.MustParseAddrPort("192.0.2.9:80"))); err != nil {
		t.Fatal(err)
	}
	go func() { a.served <- a.ServeHTTP(context.Background(), a.pipes) }()
	return a
}

func (a *asking) end() {
	close(a.pipes)
	a.Shutdown(context.Background())
	<-a.served
}

// ask makes connections with a request each.
func (a *asking) ask(from string, count int) (list []net.Conn) {
	for range count {
		c := a.dial(from)
		go io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		list = append(list, c)
	}
	synctest.Wait()
	return list
}

// begun returns how many requests were read.
func (a *asking) begun() int { return int(a.Stats().Requests) }

func hangUp(list []net.Conn) {
	for _, c := range list {
		c.Close()
	}
	synctest.Wait()
}

// TestManyAreBegunSlowly: of the connections that one client opens at once a few are read at once and the others at a
// pace, or when the first are over. Another client's are read at once. No goroutine belongs to one that waits.
func TestManyAreBegunSlowly(t *testing.T) {
	const many = fewAtOnce + 100
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t, Options{})
		defer a.end()
		want := func(what string, n int) {
			t.Helper()
			synctest.Wait()
			if got := a.begun(); got != n {
				t.Errorf("%s: %d requests were read, want %d", what, got, n)
			}
		}
		first := a.ask("192.0.2.1", many)
		want("at once", fewAtOnce)
		other := a.ask("192.0.2.2", 3)
		want("another client", fewAtOnce+3)
		time.Sleep(10 * beginEvery)
		if n := a.begun() - fewAtOnce - 3; n < 10 || n > many-fewAtOnce {
			t.Errorf("%d were read after ten times the pace", n)
		}
		time.Sleep(100 * beginEvery)
		want("in the end", many+3)

		second := a.ask("192.0.2.1", 50)
		want("no more at once while there are many", many+3)
		hangUp(first)
		want("when the first are over", many+3+50)
		if s := a.Stats(); s.Waited != many-fewAtOnce+50 || s.Refused != 0 || s.Conns != 53 {
			t.Errorf("stats: %+v", s)
		}
		hangUp(append(second, other...))
	})
}

// TestWhoWaitsIsNotReplaced: while a client's connections wait, it gets no others in their stead, or none would have
// its turn. One that loses its place to another client, or whose client is gone, waits no more.
func TestWhoWaitsIsNotReplaced(t *testing.T) {
	const places = fewAtOnce + 10
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t, Options{MaxConns: places})
		defer a.end()
		var owned []net.Conn
		defer func() { hangUp(owned) }()
		owned = a.ask("192.0.2.1", places)
		owned = append(owned, a.ask("192.0.2.1", 20)...)
		if s := a.Stats(); s.Evicted > 1 || s.Refused < 19 {
			t.Errorf("of 20 more connections %d took a place, and %d were refused", s.Evicted, s.Refused)
		}
		waiting := func() int { return int(a.Stats().Waited) + fewAtOnce - a.begun() }
		before := a.Stats().Evicted
		owned = append(owned, a.ask("192.0.2.2", 5)...)
		if n := a.Stats().Evicted - before; n != 5 {
			t.Errorf("%d lost their places to another client, want 5", n)
		}
		if n := waiting(); n < 0 {
			t.Errorf("%d wait", n)
		}
		time.Sleep(100 * beginEvery)
		synctest.Wait()
	})
}

// TestWaitingEndsWithTheServer: requests of connections that wait are answered when Shutdown is called, and cut with
// all others when its time is over.
func TestWaitingEndsWithTheServer(t *testing.T) {
	for _, cut := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			a := newAsking(t, Options{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				select {
				case <-release:
					return nil, errors.New("there is nothing")
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}})
			const many = fewAtOnce + 5
			list := a.ask("192.0.2.1", many)
			if n := a.begun(); n != fewAtOnce {
				t.Fatalf("%d requests were read, want %d", n, fewAtOnce)
			}
			answers := make(chan string, many)
			for _, c := range list {
				go func() {
					answer, _ := io.ReadAll(c) // Shutdown closes it
					answers <- string(answer)
				}()
			}
			close(a.pipes)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- a.Shutdown(ctx) }()
			synctest.Wait()
			if n := a.begun(); n != many {
				t.Errorf("%d requests were read in the end, want %d", n, many)
			}
			if cut {
				cancel()
			} else {
				close(release)
			}
			if err := <-ended; (err != nil) != cut {
				t.Errorf("Shutdown: %v", err)
			}
			for range many {
				if answer := <-answers; !cut && !strings.HasPrefix(answer, "HTTP/1.1 502 ") {
					t.Errorf("a client got %q, want an answer", answer)
				}
			}
			<-a.served
			hangUp(list)
			if n := a.Stats().Conns; n != 0 {
				t.Errorf("%d connections are left", n)
			}
		})
	}
}

// TestSilentDoNotHoldShutdown: a connection that waits and sends nothing delays Shutdown by startTime, and net/http by
// five seconds and a round of its own then.
func TestSilentDoNotHoldShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsking(t, Options{})
		var list []net.Conn
		for range fewAtOnce + 5 {
			list = append(list, a.dial("192.0.2.1"))
		}
		synctest.Wait()
		close(a.pipes)
		began := time.Now()
		if err := a.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < startTime || took > startTime+7*time.Second {
			t.Errorf("Shutdown took %v", took)
		}
		<-a.served
		hangUp(list)
	})
}

// TestRefusedAreKept: a connection that is refused to a client whose others are all in use is not reset at once, since
// its client would dial again. It has no place meanwhile, and a client with fewer gets one.
func TestRefusedAreKept(t *testing.T) {
	for _, descriptors := range []int{0, 4} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{MaxConns: 3, Limbo: descriptors})
			defer s.Shutdown(context.Background())
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			dial := func() (client net.Conn, admitted *conn, ok bool) {
				client, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { client.Close(); c.Close() })
				admitted, ok = s.guests.admit(c)
				return client, admitted, ok
			}
			for range 4 { // one of them is replaced
				_, c, ok := dial()
				if !ok {
					t.Fatal("a connection was refused that had a place")
				}
				c.touch()
			}
			client, _, ok := dial()
			if ok || s.Stats().Refused != 1 || s.Stats().Conns != 3 {
				t.Fatalf("a connection too many: it got a place (%v), %+v", ok, s.Stats())
			}
			ended := func() (yes bool) { // nobody sends anything to the client
				raw, err := client.(*net.TCPConn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				_ = raw.Control(func(fd uintptr) { yes = readable(fd) })
				return yes
			}
			if want := descriptors == 0; ended() != want {
				t.Errorf("with %d descriptors, that it ended at once is %v", descriptors, !want)
			}
			if _, ok := s.guests.admit(pipeFrom(t, "192.0.2.2:1")); !ok {
				t.Error("a client with fewer was refused")
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if !ended() {
				t.Error("it is kept without end")
			}
		})
	}
}

// TestWhoLeftTakesNoTurn: a connection whose client sends no more, or is gone, is closed when its turn comes, and the
// next one has the turn. It does not count as in use while it waits.
func TestWhoLeftTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		defer s.Shutdown(context.Background())
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		later := newLaterListener(l.Addr())
		defer later.Close()
		dial := func() (client *net.TCPConn, entered *conn, atOnce bool) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			cn, ok := s.guests.admit(accepted)
			if !ok {
				t.Fatal("a connection was refused")
			}
			t.Cleanup(func() { c.Close(); cn.Close() })
			cn.later = later
			return c.(*net.TCPConn), cn, s.guests.lobby.Enter(&cn.stay, cn.owner)
		}
		for range fewAtOnce {
			if _, _, atOnce := dial(); !atOnce {
				t.Fatal("one of the first waits")
			}
		}
		for i := range 20 {
			client, waits, atOnce := dial()
			if atOnce || !waits.inUse() {
				t.Fatal("one more does not wait, or is not in use meanwhile")
			}
			if i%2 == 0 {
				client.CloseWrite()
			} else {
				client.SetLinger(0)
				client.Close()
			}
			for !conns.Left(waits.Conn) { // the kernel passes it on within the call, or soon
				runtime.Gosched()
			}
			if waits.inUse() {
				t.Error("one whose client left is in use")
			}
		}
		_, last, _ := dial()
		time.Sleep(beginEvery) // enough for one turn, and not for 21
		arrived, err := later.Accept()
		if err != nil || arrived != last {
			t.Errorf("%v came, %v", arrived, err)
		}
		if n := s.Stats().Conns; n != fewAtOnce+1 {
			t.Errorf("%d connections are left, want %d", n, fewAtOnce+1)
		}
	})
}
