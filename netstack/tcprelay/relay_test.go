package tcprelay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// noise returns n pseudo-random bytes that depend only on the seed.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{seed})
	_, _ = r.Read(b)
	return b
}

// exchange makes both ends send and read everything at the same time, and then close one after the other.
func exchange(t *testing.T, a, b net.Conn, n int) {
	t.Helper()
	said := [2][]byte{noise(1, n), noise(2, n+7)}
	heard := make(chan error, 2)
	for i, c := range []net.Conn{a, b} {
		go func() {
			_, err := c.Write(said[i])
			if err == nil {
				err = c.(interface{ CloseWrite() error }).CloseWrite()
			}
			if err != nil {
				heard <- fmt.Errorf("end %d says: %w", i, err)
				return
			}
			got, err := io.ReadAll(c)
			switch {
			case err != nil:
				heard <- fmt.Errorf("end %d hears: %w", i, err)
			case sha256.Sum256(got) != sha256.Sum256(said[1-i]):
				heard <- fmt.Errorf("end %d heard %d bytes, not the %d that were said", i, len(got), len(said[1-i]))
			default:
				heard <- nil
			}
		}()
	}
	for range 2 {
		if err := <-heard; err != nil {
			t.Error(err)
		}
	}
}

var families = []string{"IPv4", "IPv6"}

func TestEgress(t *testing.T) {
	for i, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod, server := w.egress(t, i)
			exchange(t, pod, server, 2<<20)
			_, _ = pod.Close(), server.Close()
			w.gone(t)
		})
	}
}

func TestJoin(t *testing.T) {
	for i, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			j := w.join(t, i)
			if got := j.server.RemoteAddr().String(); got != seenAs[i].String() {
				t.Errorf("the pod saw %s, want %s", got, seenAs[i])
			}
			exchange(t, j.client, j.server, 2<<20)
			_, _ = j.client.Close(), j.server.Close()
			if err := <-j.err; err != nil {
				t.Error(err)
			}
			w.gone(t)
		})
	}
}

// Lost frames are retransmitted, whether they are lost at the beginning, in the middle or at the end.
func TestLoss(t *testing.T) {
	for seed := range 4 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			var hold *tcprelay.Hold
			if seed%2 == 1 { // what was lost is read from the socket again
				hold = newShelf(t, 8).hold(t)
			}
			w := newWorldWith(t, hold)
			w.loss.Store(30)
			pod, server := w.egress(t, 0)
			exchange(t, pod, server, 300<<10)
			j := w.join(t, 1)
			exchange(t, j.client, j.server, 300<<10)
		})
	}
}

// Small messages go back and forth, and each is acknowledged with the reply or soon after.
func TestConversation(t *testing.T) {
	w := newWorld(t)
	pod, server := w.egress(t, 0)
	go func() { _, _ = io.Copy(server, server) }()
	buf := make([]byte, 100)
	for i := range 500 {
		msg := noise(byte(i), 1+i%100)
		if _, err := pod.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(pod, buf[:len(msg)]); err != nil || !bytes.Equal(buf[:len(msg)], msg) {
			t.Fatalf("message %d came back as %x, %v", i, buf[:len(msg)], err)
		}
	}
}

// A pod that has sent everything and got all acknowledgements needs no connection any more while a slow client still
// reads.
func TestPodIsDoneFirst(t *testing.T) {
	w := newWorld(t)
	j := w.join(t, 0)
	_ = j.client.(*net.TCPConn).SetReadBuffer(64 << 10)
	if err := j.client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(j.server); err != nil {
		t.Fatal(err)
	}
	const size = 6 << 20
	said := make(chan error, 1)
	go func() {
		_, err := j.server.Write(noise(4, size))
		said <- errors.Join(err, j.server.Close())
	}()
	// The client reads all but what fits into the relay alone. Then the pod has written the rest and is gone.
	got := make([]byte, size, size+1)
	if n, err := io.ReadFull(j.client, got[:size-512<<10]); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	if err := <-said; err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(j.client, got[size-512<<10:]); err != nil {
		t.Fatalf("after %d of the last bytes: %v", n, err)
	}
	if n, err := j.client.Read(got[size : size+1]); err != io.EOF {
		t.Errorf("%d bytes too many, %v", n, err)
	}
	if !bytes.Equal(got, noise(4, size)) {
		t.Errorf("heard %d bytes, not the %d that were said", len(got), size)
	}
}

// An end that does not read makes the other one wait, and nothing is lost.
func TestBackPressure(t *testing.T) {
	w := newWorld(t)
	pod, server := w.egress(t, 0)
	for _, c := range []struct {
		name      string
		say, hear net.Conn
		noRoom    chan struct{}
	}{{"the server is slow", pod, server, w.noRoomHere}, {"the pod is slow", server, pod, w.noRoomInPod}} {
		const most = 64 << 20 // more than all buffers between the two hold
		var enough atomic.Bool
		said := make(chan [sha256.Size]byte, 1)
		go func() {
			sum, n := sha256.New(), 0
			for i := 0; !enough.Load() && n < most; i++ {
				b := noise(byte(i), 64<<10)
				if _, err := c.say.Write(b); err != nil {
					t.Errorf("%s: %v", c.name, err)
					break
				}
				sum.Write(b)
				n += len(b)
			}
			if n >= most {
				t.Errorf("%s: %d bytes were taken though nobody listens", c.name, n)
			}
			if err := c.say.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			said <- [sha256.Size]byte(sum.Sum(nil))
		}()
		select {
		case <-c.noRoom: // the stream stands still until the other end reads
		case sum := <-said:
			said <- sum
		}
		enough.Store(true)
		got := sha256.New()
		if _, err := io.Copy(got, c.hear); err != nil || [sha256.Size]byte(got.Sum(nil)) != <-said {
			t.Errorf("%s: what was heard is not what was said: %v", c.name, err)
		}
	}
}

// A limited pod is sent one superframe each time that Pace allows it, and gets everything in the end.
func TestPace(t *testing.T) {
	w := newWorld(t)
	pod, server := w.egress(t, 0)
	w.pause.Store(int64(2 * time.Millisecond))
	const size = 4 << 20
	said := make(chan error, 1)
	go func() {
		_, err := server.Write(noise(5, size))
		said <- err
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(pod, got); err != nil || !bytes.Equal(got, noise(5, size)) {
		t.Errorf("what was heard is not what was said: %v", err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
	if data, early := w.data.Load(), w.early.Load(); data < size>>16 || early > 0 {
		t.Errorf("%d of %d segments did not wait", early, data)
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t)
	l := listen(t, 0)
	to := netip.AddrPortFrom(outside[0], port(l.Addr()))
	_ = l.Close()
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	if c, err := w.pod.Dial(ctx, "tcp", to); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v, %v; want a refusal", c, err)
	}
	w.gone(t)

	client, accepted := dialHost(t, 0)
	var told []bool
	if _, err := io.WriteString(client, "hello"); err != nil {
		t.Fatal(err)
	}
	to = netip.AddrPortFrom(podIPs[0], 81)
	tell := func(yes bool) { told = append(told, yes) }
	var refused *tcprelay.RefusedError
	for range 3 {
		if err := w.Join(ctx, accepted, seenAs[0], to, tell); !errors.As(err, &refused) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("joined with a pod that refuses: %v", err)
		}
		w.gone(t)
		accepted = refused.Client
	}
	if !slices.Equal(told, []bool{false, false, false}) {
		t.Errorf("of a pod that refuses it is told %v", told)
	}
	// Nothing was read of what the client had said, so another pod hears all of it.
	in, err := w.pod.Listen(to)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	joined := make(chan error, 1)
	go func() { joined <- w.Join(ctx, accepted, seenAs[0], to, nil) }()
	pod, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	_ = pod.SetDeadline(netstacktest.Until(t))
	got := make([]byte, len("hello"))
	if _, err := io.ReadFull(pod, got); err != nil || string(got) != "hello" {
		t.Errorf("the pod heard %q, %v", got, err)
	}
	_, _ = pod.Close(), client.Close()
	if err := <-joined; err != nil {
		t.Error(err)
	}
}

// A reset by either end reaches the other one as a reset.
func TestReset(t *testing.T) {
	w := newWorld(t)
	pod, server := w.egress(t, 0)
	_ = server.(*net.TCPConn).SetLinger(0)
	_ = server.Close()
	if _, err := io.ReadAll(pod); err == nil {
		t.Error("the pod heard a clean end, not the server's reset")
	}
	w.gone(t)

	pod, server = w.egress(t, 0)
	if _, err := server.Write([]byte("not read")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(pod, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	_ = pod.Close() // with unread data: a reset (RFC 2525 2.17)
	if _, err := io.ReadAll(server); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server heard %v, want a reset", err)
	}
	w.gone(t)
}

// The client of a connection that the node itself ends gets a reset, and other connections go on.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*world, *joined)
	}{
		{"context", func(_ *world, j *joined) { j.end() }},
		{"Forget", func(w *world, _ *joined) { w.Forget(podIPs[0]) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			j := w.join(t, 0)
			other, _ := w.egress(t, 1)
			c.end(w, j)
			if _, err := j.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client heard %v, want a reset", err)
			}
			if err := <-j.err; err != nil {
				t.Error(err)
			}
			if w.Len() != 1 {
				t.Errorf("%d connections are left, want the other one", w.Len())
			}
			_ = other
		})
	}
}

func TestJoinInUse(t *testing.T) {
	w := newWorld(t)
	j := w.join(t, 0)
	client, accepted := dialHost(t, 0)
	to := netip.AddrPortFrom(podIPs[0], 80)
	err := w.Join(t.Context(), accepted, seenAs[0], to, nil)
	if !errors.Is(err, tcprelay.ErrInUse) {
		t.Fatalf("%v, want ErrInUse", err)
	}
	// The client is still usable, and another port will do.
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ran := make(chan error, 1)
	go func() { ran <- w.Join(ctx, accepted, netip.AddrPortFrom(seenAs[0].Addr(), 0), to, nil) }()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	_ = client.Close()
	_ = j.client.Close()
	_ = j.server.Close()
	end()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
