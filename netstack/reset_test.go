package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// watched is a pod with a real stack, whose TCP segments are watched.
type watched struct {
	*netstacktest.Pod
	next   atomic.Uint32 // the sequence number after the pod's latest segment
	resets atomic.Uint32 // resets that the pod got
}

// watch puts a real stack behind one of the world's devices, and watches what crosses it.
func (w *world) watch(name string, addrs ...string) *watched {
	w.t.Helper()
	dev, pod, done := w.devices[name], &watched{}, make(chan struct{})
	between := netstacktest.NewDevice()
	var err error
	if pod.Pod, err = netstacktest.NewPod(between, w.macs[name], tap.RouterMAC, 1420, addresstest.Addrs(addrs...)...); err != nil {
		w.t.Fatal(err)
	}
	parsed := func(f []byte) *packet.Packet {
		var p packet.Packet
		if p.ParseFrame(f) != packet.Good || p.Tuple.Proto != packet.TCP {
			return nil
		}
		return &p
	}
	go func() {
		_ = between.Run(func(f []byte) []byte {
			if p := parsed(f); p != nil {
				n := uint32(p.Len() - p.Payload)
				if p.TCPFlags&(packet.SYN|packet.FIN) != 0 {
					n++
				}
				pod.next.Store(binary.BigEndian.Uint32(p.IP[p.L4+4:]) + n)
			}
			dev.Send(bytes.Clone(f))
			return f
		}, nil)
	}()
	go func() {
		for {
			select {
			case f := <-dev.Frames():
				if p := parsed(f); p != nil && p.TCPFlags&packet.RST != 0 {
					pod.resets.Add(1)
				}
				_ = between.Write(f)
			case <-done:
				return
			}
		}
	}()
	w.t.Cleanup(func() {
		pod.Close()
		_ = between.Close()
		close(done)
	})
	return pod
}

// sleep lets this many seconds pass for the flow table.
func (w *world) sleep(seconds uint32) {
	w.clock.Add(seconds)
	for range 60 {
		w.path.flows.Sweep()
	}
}

// talk sends a line in one direction of a connection.
func talk(t *testing.T, from, to net.Conn, line string) {
	t.Helper()
	if _, err := io.WriteString(from, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if got := readLine(t, to); got != line {
		t.Fatalf("got %q, want %q", got, line)
	}
}

// connected is a connection of pod a to pod b through a Service, between real stacks.
type connected struct {
	*world
	a, b           *watched
	client, server net.Conn
	vip, backend   netip.AddrPort
}

func connect(t *testing.T, vip, backend string) *connected {
	w := newWorld(t)
	c := &connected{world: w, vip: ap(vip), backend: ap(backend)}
	c.a = w.watch("a", "10.244.1.10", "fd00:10:244:1::10")
	c.b = w.watch("b", "10.244.1.11", "fd00:10:244:1::11")
	l, err := c.b.Listen(c.backend)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	if c.client, err = c.a.Dial(ctx, "tcp", c.vip); err != nil {
		t.Fatal(err)
	}
	if c.server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.client.Close(), c.server.Close() })
	talk(t, c.client, c.server, "question")
	talk(t, c.server, c.client, "answer")
	return c
}

// forge sends a reset from one end to the other with a number that is this far from the right one.
func (c *connected) forge(name string, off, ack uint32, flags uint8) {
	from, src, dst := c.a, c.client.LocalAddr(), c.vip.String()
	if name == "b" {
		from, src, dst = c.b, c.server.LocalAddr(), c.client.LocalAddr().String()
	}
	s := segment(src.String(), dst, flags)
	s.Seq, s.Ack = from.next.Load()+off, ack
	c.from(name, s)
}

var services = [][2]string{{"10.96.0.1:80", "10.244.1.11:8080"}, {"[fd00:10:96::1]:80", "[fd00:10:244:1::11]:8080"}}

// TestForgedReset: a connection through a Service outlives resets whose numbers are wrong, of either end or of both,
// and an hour of silence after them. Its data go to the same backend (projectcalico/calico#13880, google/gvisor#13165).
func TestForgedReset(t *testing.T) {
	for _, s := range services {
		for _, ends := range []string{"a", "b", "ab"} {
			t.Run(fmt.Sprint(s[0], " by ", ends), func(t *testing.T) {
				c := connect(t, s[0], s[1])
				c.leads(s[0], picked(2, "10.244.2.10:8080"), false) // new connections go elsewhere
				const each = 40
				r := rand.New(rand.NewPCG(1, 2))
				for range each {
					for _, end := range ends {
						far := 64<<20 + r.Uint32N(1<<32-128<<20) // in neither direction near the right number
						c.forge(string(end), far, r.Uint32(), packet.RST|uint8(r.IntN(2))*packet.ACK)
					}
				}
				c.until(func() bool { return c.a.resets.Load()+c.b.resets.Load() >= uint32(each*len(ends)) })
				for range 3 {
					c.sleep(3600)
					talk(t, c.client, c.server, "another question")
					c.sleep(3600)
					talk(t, c.server, c.client, "another answer")
				}
			})
		}
	}
}

// TestTrueReset: a reset that its receiver obeys ends the flow within two minutes.
func TestTrueReset(t *testing.T) {
	for _, s := range services {
		for _, by := range []string{"the client", "the server"} {
			t.Run(fmt.Sprint(s[0], " by ", by), func(t *testing.T) {
				c := connect(t, s[0], s[1])
				gone, stays, told := c.client, c.server, c.b
				if by == "the server" {
					gone, stays, told = c.server, c.client, c.a
				}
				// A connection that is closed with unread data is reset (RFC 2525 2.17).
				if _, err := io.WriteString(stays, "read\nunread\n"); err != nil {
					t.Fatal(err)
				}
				if got := readLine(t, gone); got != "read" {
					t.Fatalf("got %q", got)
				}
				_ = gone.Close()
				c.until(func() bool { return told.resets.Load() > 0 })
				_ = stays.SetReadDeadline(time.Now().Add(await.Patience))
				if n, err := stays.Read(make([]byte, 100)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("the other end reads %d bytes, %v", n, err)
				}
				c.path.flows.Range(func(_ *flow.Entry, i flow.Info) bool {
					if i.State != flow.Reset || i.ExpiresIn > 120 {
						t.Errorf("the flow is %v and expires in %d s", i.State, i.ExpiresIn)
					}
					return true
				})
				c.sleep(121)
				if n := c.path.flows.Stats().Len; n != 0 {
					t.Errorf("%d flows are left two minutes after the reset", n)
				}
			})
		}
	}
}
