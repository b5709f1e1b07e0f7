package agent

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// listen opens a listener in the sandbox, or on the node if s is nil. The test's cleanup closes it.
func listen(t *testing.T, s *sandbox, addr string) (l net.Listener) {
	t.Helper()
	open := func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}
	var err error
	if s == nil {
		err = open()
	} else {
		err = s.ns.Do(open)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// address returns the sandbox's first address.
func (s *sandbox) address() string {
	addr, _, _ := strings.Cut(s.addrs(), "/")
	return addr
}

// dial connects from the sandbox.
func (s *sandbox) dial(addr string) (c net.Conn) {
	s.t.Helper()
	if err := s.ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", addr, await.Patience)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// flood writes until the other end closes.
func flood(c net.Conn) {
	defer c.Close()
	for b := make([]byte, 256<<10); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// rate measures a stream in bits per second, for some time after the stream has reached its full speed.
func rate(t *testing.T, c net.Conn) float64 {
	t.Helper()
	defer c.Close()
	const stride, while = 500 * time.Millisecond, time.Second
	start, begin, got := time.Now(), time.Time{}, 0
	for b := make([]byte, 256<<10); ; {
		_ = c.SetReadDeadline(time.Now().Add(await.Patience))
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		switch {
		case !begin.IsZero():
			got += n
		case now.Sub(start) > stride:
			begin = now
		}
		if took := now.Sub(begin); !begin.IsZero() && took > while {
			return float64(got) * 8 / took.Seconds()
		}
	}
}

// A pod receives as fast as its limit says, also after the agent restarts.
func TestIngressRate(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	from := n.sandbox("from", "from")
	from.works("ADD")
	for i, limit := range []float64{100e6, 1e9} {
		s := n.sandbox(fmt.Sprint("c", i), fmt.Sprint("limited-", i))
		s.extra = fmt.Sprintf(`,"runtimeConfig":{"bandwidth":{"ingressRate":%.0f}}`, limit)
		s.works("ADD")
		right := func(what string, measure func() float64) {
			t.Helper()
			var got float64
			for range 10 { // a busy machine may be too slow for a moment, but never too fast
				got = measure()
				t.Logf("%s of %.0f Mbit/s: %.0f", what, limit/1e6, got/1e6)
				if got > 0.85*limit {
					break
				}
			}
			if got > 1.15*limit || got < 0.85*limit {
				t.Errorf("%s: %.0f Mbit/s came to a pod that is limited to %.0f", what, got/1e6, limit/1e6)
			}
		}
		podToPod := func() float64 {
			l := listen(t, s, s.address())
			go flood(from.dial(l.Addr().String()))
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return rate(t, c)
		}
		outside := func() float64 {
			l := listen(t, nil, "172.31.0.1")
			go func() {
				if c, err := l.Accept(); err == nil {
					flood(c)
				}
			}()
			return rate(t, s.dial(l.Addr().String()))
		}
		right("from a pod", podToPod)
		right("from outside", outside)
		n.kill()
		n.start()
		n.ready()
		right("from a pod, after a restart", podToPod)
		s.works("CHECK")
	}
}
