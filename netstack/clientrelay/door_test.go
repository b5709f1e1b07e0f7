package clientrelay

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/test/await"
)

// A client that the host gives a writer is read as well, and answered through the Door.
func TestWriter(t *testing.T) {
	w := newWorld(t)
	d, at := w.open(families[0].host)
	got := make(chan string, 8)
	w.served.Go(func() {
		_ = d.Serve(func(client netip.AddrPort, local netip.Addr) io.Closer {
			return writer(func(b []byte) {
				got <- string(b)
				d.Answer(append([]byte("re: "), b...), client, local)
			})
		})
	})
	client := dial(t, at)
	for _, s := range []string{"one", "", "three"} {
		say(t, client, []byte(s))
		if g := <-got; g != s {
			t.Errorf("%q came, want %q", g, s)
		}
		b := make([]byte, 100)
		if n, err := client.Read(b); err != nil || string(b[:n]) != "re: "+s {
			t.Errorf("the answer is %q, %v", b[:n], err)
		}
	}
	d.Close()
	d.Answer([]byte("too late"), local(client), netip.Addr{})
}

// A Door that is closed while its host is asked ends after that: the host is not asked any more, and the address is
// free, when Serve and Close return.
func TestCloseWaits(t *testing.T) {
	w := newWorld(t)
	d, at := w.open(families[0].host)
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	var asking atomic.Bool
	served := make(chan error, 1)
	w.served.Go(func() {
		_ = d.Serve(func(netip.AddrPort, netip.Addr) io.Closer {
			asking.Store(true)
			defer asking.Store(false)
			asked <- struct{}{}
			<-answer
			return nil
		})
		if asking.Load() {
			t.Error("Serve has ended while the host is asked")
		}
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err == nil {
			err = c.Close()
		}
		served <- err
	})
	say(t, dial(t, at), []byte("x"))
	<-asked
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		d.Close()
	}()
	await.Until(t, "the Door is about to close", func() bool {
		if d.acquire() {
			d.release()
			return false
		}
		return true
	})
	for range 1000 {
		runtime.Gosched() // what would not wait is over then
	}
	select {
	case <-closed:
		t.Error("Close has ended while the host is asked")
	default:
	}
	close(answer)
	if err := <-served; err != nil {
		t.Errorf("the address is not free: %v", err)
	}
	<-closed
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }
func (w writer) Close() error                { return nil }

// What the host does not take is counted, as for a port that there is not.
func TestLost(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t)
			d, at := w.open(f.host)
			d.Answer([]byte("x"), netip.AddrPortFrom(at.Addr(), 0), at.Addr())
			if n := w.relay.Lost(); n != 1 {
				t.Errorf("%d answers were lost, want one", n)
			}
			c := dial(t, at)
			d.Answer([]byte("y"), local(c), at.Addr())
			if n := w.relay.Lost(); n != 1 {
				t.Errorf("%d answers were lost, and one left", n)
			}
		})
	}
}
