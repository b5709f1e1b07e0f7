package tap_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

func newPoller(t *testing.T, loops int) *poll.Poller {
	t.Helper()
	p, err := poll.New(loops)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// polled is a pod whose TAP a Poller reads. seen gets the first four bytes of the payload of every datagram that the
// pod sends to podB's port 9.
type polled struct {
	dev  *tap.Device
	conn *net.UDPConn
	ran  chan error
}

func newPolled(t *testing.T, p *poll.Poller, seen func(n uint32)) *polled {
	t.Helper()
	ns, f := newPod(t, podA, macA)
	x := &polled{dev: newDevice(t, f, tap.Options{Poller: p}), ran: make(chan error, 1)}
	go func() {
		x.ran <- x.dev.Run(func(b []byte) []byte {
			if len(b) == packet.HeadLen+28+4 {
				seen(binary.BigEndian.Uint32(b[packet.HeadLen+28:]))
			}
			return b
		}, nil)

	}()
	x.conn = listenUDP(t, ns, podA[0])
	return x
}

func (x *polled) say(t *testing.T, n uint32) {
	t.Helper()
	if _, err := x.conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, n), netip.AddrPortFrom(podB[0], 9)); err != nil {
		t.Error(err)
	}
}

func (x *polled) close(t *testing.T) {
	t.Helper()
	if err := x.dev.Close(); err != nil {
		t.Error(err)
	}
	if err := <-x.ran; err != nil {
		t.Errorf("Run after Close: %v", err)
	}
}

// With more Devices than goroutines every frame arrives, and each Device's frames are handled in order by one goroutine
// at a time.
func TestPollerKeepsOrder(t *testing.T) {
	const frames = 300 // fewer than fit into a TAP's queue
	p := newPoller(t, 3)
	var pods []*polled
	var counts [5]atomic.Int64
	for i := range counts {
		var inside atomic.Int32
		next := uint32(0)
		pods = append(pods, newPolled(t, p, func(n uint32) {
			if inside.Add(1) != 1 {
				t.Errorf("pod %d: two handlers at once", i)
			}
			if n != next {
				t.Errorf("pod %d: frame %d after %d", i, n, next)
			}
			next = n + 1
			counts[i].Add(1)
			inside.Add(-1)
		}))
	}
	var sending sync.WaitGroup
	for _, x := range pods {
		sending.Go(func() {
			for n := range uint32(frames) {
				x.say(t, n)
			}
		})
	}
	sending.Wait()
	for i := range counts {
		await.Until(t, "all frames arrive", func() bool { return counts[i].Load() == frames })
	}
	for _, x := range pods {
		x.close(t)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

// While a handler waits, another goroutine takes its place, and ends when the handler goes on.
func TestPollerWaiting(t *testing.T) {
	p := newPoller(t, 1)
	release, blocked := make(chan struct{}), make(chan struct{})
	stuck := newPolled(t, p, func(uint32) {
		p.Waiting(true)
		close(blocked)
		<-release
		p.Waiting(false)
	})
	var count atomic.Int64
	other := newPolled(t, p, func(uint32) { count.Add(1) })
	stuck.say(t, 0)
	<-blocked
	for n := range uint32(50) {
		other.say(t, n)
	}
	await.Until(t, "the other pod is served meanwhile", func() bool { return count.Load() == 50 })
	close(release)
	other.say(t, 50)
	await.Until(t, "and after", func() bool { return count.Load() == 51 })
	stuck.close(t)
	other.close(t)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A TAP of which another process holds a descriptor, as a keeper does, can be closed and opened again on the same
// Poller.
func TestPollerForgetsClosedDevices(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	kept := os.NewFile(uintptr(fd), "kept")
	defer kept.Close()
	p := newPoller(t, 1)
	conn := listenUDP(t, ns, podA[0])
	for range 3 {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		d := newDevice(t, os.NewFile(uintptr(dup), "dup"), tap.Options{Poller: p})
		got := make(chan struct{}, 1)
		ran := make(chan error, 1)
		go func() {
			ran <- d.Run(func(b []byte) []byte {
				if len(b) == packet.HeadLen+28+4 {
					got <- struct{}{}
				}
				return b
			}, nil)

		}()
		if _, err := conn.WriteToUDPAddrPort(make([]byte, 4), netip.AddrPortFrom(podB[0], 9)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got:
		case <-time.After(await.Patience):
			t.Fatal("a reopened TAP is not read")
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// Close ends Run whether it is called before, during or after the start of Run.
func TestPollerCloseRaces(t *testing.T) {
	p := newPoller(t, 2)
	for range 50 {
		_, f := newPod(t, podA, macA)
		d := newDevice(t, f, tap.Options{Poller: p})
		ran := make(chan error, 1)
		go func() { ran <- d.Run(func(b []byte) []byte { return b }, nil) }()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
