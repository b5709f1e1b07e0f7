package stack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
)

// relayed is a connection from a kernel socket through the stack to a pod, joined by ReadFrom.
type relayed struct {
	client   *net.TCPConn // sends to the pod
	accepted *net.TCPConn // its other end, which ReadFrom reads
	dialled  net.Conn     // the stack's end
	pod      net.Conn
	sent     int64
	finished chan error // what ReadFrom returned
}

func relay(t *testing.T) *relayed {
	t.Helper()
	s, pod := wired(t)
	inside, err := pod.Listen(netip.AddrPortFrom(podAddr, 80))
	if err != nil {
		t.Fatal(err)
	}
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	r := &relayed{finished: make(chan error, 1)}
	client, err := new(net.Dialer).DialContext(ctx, "tcp", outside.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.client = client.(*net.TCPConn)
	accepted, err := outside.Accept()
	if err != nil {
		t.Fatal(err)
	}
	r.accepted = accepted.(*net.TCPConn)
	if r.dialled, err = s.Dial(ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(podAddr, 80)); err != nil {
		t.Fatal(err)
	}
	if r.pod, err = inside.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []io.Closer{r.client, accepted, r.dialled, r.pod, inside, outside} {
			_ = c.Close()
		}
	})
	go func() {
		var err error
		r.sent, err = r.dialled.(io.ReaderFrom).ReadFrom(accepted)
		r.finished <- err
	}()
	return r
}

// end returns what ReadFrom has returned.
func (r *relayed) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.finished:
		return err
	case <-netstacktest.GiveUp(t):
		t.Fatal("ReadFrom does not end")
		return nil
	}
}

// Data in pieces of all sizes arrives whole and in order, and the end of the stream is not an error.
func TestReadFromKernel(t *testing.T) {
	r := relay(t)
	random := rand.NewChaCha8([32]byte{1})
	sent, want := sha256.New(), int64(0)
	go func() {
		for _, n := range []int{1, 7, 1400, superframePayload - 1, superframePayload, superframePayload + 1, 5 * superframePayload, 3<<20 + 5, 1} {
			b := make([]byte, n)
			_, _ = random.Read(b)
			sent.Write(b)
			want += int64(n)
			if _, err := r.client.Write(b); err != nil {
				t.Error(err)
			}
		}
		_ = r.client.CloseWrite()
	}()
	got := sha256.New()
	_ = r.pod.SetReadDeadline(netstacktest.Until(t))
	heard := make(chan error, 1)
	go func() {
		_, err := io.Copy(got, r.pod)
		heard <- err
	}()
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	_ = r.dialled.(interface{ CloseWrite() error }).CloseWrite()
	if err := <-heard; err != nil {
		t.Fatal(err)
	}
	if r.sent != want || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Errorf("%d of %d bytes were sent, and the pod heard something else", r.sent, want)
	}
}

// Urgent bytes stay in their place in the stream (RFC 6093 6).
func TestReadFromUrgent(t *testing.T) {
	r := relay(t)
	raw, err := r.client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"before!", "between!"} {
		var serr error
		if err := raw.Control(func(fd uintptr) { serr = unix.Sendto(int(fd), []byte(b), unix.MSG_OOB, nil) }); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
	}
	if _, err := io.WriteString(r.client, "after"); err != nil {
		t.Fatal(err)
	}
	_ = r.client.CloseWrite()
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	_ = r.dialled.(interface{ CloseWrite() error }).CloseWrite()
	_ = r.pod.SetReadDeadline(netstacktest.Until(t))
	if got, err := io.ReadAll(r.pod); err != nil || string(got) != "before!between!after" {
		t.Errorf("the pod heard %q, %v", got, err)
	}
}

// A reset of the client's connection is an error of ReadFrom, because incomplete data must not look like the end of the
// stream.
func TestReadFromReset(t *testing.T) {
	r := relay(t)
	if _, err := r.client.Write([]byte("half a")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r.pod, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	_ = r.client.SetLinger(0)
	_ = r.client.Close()
	if err := r.end(t); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// Close ends a ReadFrom that waits for room because the pod reads nothing.
func TestReadFromClosed(t *testing.T) {
	r := relay(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, err := r.client.Write(make([]byte, 1<<20)); err == nil; _, err = r.client.Write(make([]byte, 1<<20)) {
		}
	}()
	t.Cleanup(func() {
		_ = r.client.Close()
		<-ended
	})
	// Wait until ReadFrom takes no more data from the kernel socket, which the client keeps full. On a busy machine it
	// may take more later; then it fails at its next write, as it must.
	raw, err := r.accepted.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for still, last := 0, -1; still < 50; time.Sleep(time.Millisecond) {
		there := 0
		if err := raw.Control(func(fd uintptr) { there, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
			t.Fatal(err)
		}
		if still++; there == 0 || there != last {
			still, last = 0, there
		}
	}
	_ = r.dialled.Close()
	if err := r.end(t); err == nil || !strings.Contains(err.Error(), "write") {
		t.Errorf("got %v, want that it cannot write", err)
	}
}
