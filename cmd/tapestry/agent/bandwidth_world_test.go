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
func listen(t *testing.T, s *sandbox) (l net.Listener) {
	t.Helper()
	within, addr := func(f func() error) error { return f() }, outsideAddr
	if s != nil {
		within, addr = s.ns.Do, s.address()
	}
	err := within(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	})
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

// outsideAddr is the machine's own address, which for a pod is outside of the cluster.
const outsideAddr = "172.31.0.1"

// keepsTo measures streams of a pod until one is as fast as the pod's limit, in bits per second, and asserts that none
// is faster: a busy machine may be too slow for a moment, but never too fast.
func keepsTo(t *testing.T, limit float64, what string, measure func() float64) {
	t.Helper()
	var got float64
	for range 10 {
		got = measure()
		t.Logf("%s of %.0f Mbit/s: %.0f", what, limit/1e6, got/1e6)
		if got > 0.85*limit {
			break
		}
	}
	if got > 1.15*limit || got < 0.85*limit {
		t.Errorf("%s: %.0f Mbit/s, of a pod that is limited to %.0f", what, got/1e6, limit/1e6)
	}
}

// stream measures a stream in bits per second from a client to a server, or back. A server that is nil is outside.
func stream(t *testing.T, client, server *sandbox, back bool) float64 {
	t.Helper()
	l := listen(t, server)
	from := client.dial(l.Addr().String())
	to, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if back {
		from, to = to, from
	}
	go flood(from)
	return rate(t, to)
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
		fromPod := func() float64 { return stream(t, from, s, false) }
		keepsTo(t, limit, "from a pod", fromPod)
		keepsTo(t, limit, "from outside", func() float64 { return stream(t, s, nil, true) })
		n.kill()
		n.start()
		n.ready()
		keepsTo(t, limit, "from a pod, after a restart", fromPod)
		s.works("CHECK")
	}
}

// A pod sends as fast as its limit says, to pods and to the outside, also after the agent restarts. What it receives is
// not limited by that.
func TestEgressRate(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	to := n.sandbox("to", "to")
	to.works("ADD")
	for i, limit := range []float64{20e6, 100e6} {
		s := n.sandbox(fmt.Sprint("c", i), fmt.Sprint("limited-", i))
		s.extra = fmt.Sprintf(`,"runtimeConfig":{"bandwidth":{"egressRate":%.0f}}`, limit)
		s.works("ADD")
		toPod := func() float64 { return stream(t, s, to, false) }
		keepsTo(t, limit, "to a pod", toPod)
		keepsTo(t, limit, "to the outside", func() float64 { return stream(t, s, nil, false) })
		if got := stream(t, to, s, false); got < 1.5*limit {
			t.Errorf("%.0f Mbit/s came to a pod that may send %.0f, want more", got/1e6, limit/1e6)
		}
		n.kill()
		n.start()
		n.ready()
		keepsTo(t, limit, "to a pod, after a restart", toPod)
		s.works("CHECK")
	}
}
