package fdpass

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// quietPair returns two ends of a connection that are quiet.
func quietPair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func(fd int) *Conn {
		f := os.NewFile(uintptr(fd), "end")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		conn := newConn(c.(*net.UnixConn), Cred{})
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	a, b = end(fds[0]), end(fds[1])
	if err := a.TrySend("before"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Conn{a, b, a} { // twice is harmless
		if err := c.Quiet(); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func TestQuiet(t *testing.T) {
	a, b := quietPair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := Dup(w)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if err := a.TrySend("with a descriptor", fd); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	for _, want := range []string{"before", "with a descriptor"} {
		if !b.More() {
			t.Errorf("there seems to be no %q", want)
		}
		var got string
		fds, err := b.Receive(&got)
		if err != nil || got != want || len(fds) != len(want)/len("with a descriptor") {
			t.Fatalf("got %q, %v, %v, want %q", got, fds, err, want)
		}
		CloseAll(fds)
	}
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor is left over: %d, %v", n, err)
	}
	if b.More() || b.Gone() {
		t.Error("there is more, or the other end is gone")
	}
	if err := b.TrySend("back"); err != nil {
		t.Fatal(err)
	}
	var got string
	if _, err := a.Receive(&got); err != nil || got != "back" {
		t.Errorf("got %q, %v", got, err)
	}
	_ = b.Close()
	if !a.Gone() {
		t.Error("the other end has closed and does not seem to be gone")
	}
	if _, err := a.Receive(&got); err != io.EOF {
		t.Errorf("the other end has closed: got %v", err)
	}
}

// A Receive that waits ends with its own connection, and with its context. What was sent before can still be received,
// and more can be sent, after the latter.
func TestQuietEnds(t *testing.T) {
	a, b := quietPair(t)
	var got string
	if _, err := b.Receive(&got); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { _, err := b.ReceiveUntil(ctx, new(string)); ended <- err }()
	cancel()
	if err := <-ended; err == nil {
		t.Error("the context ended, and nothing is wrong")
	}
	if err := b.TrySend("still"); err != nil {
		t.Errorf("nothing can be sent: %v", err)
	}
	if _, err := a.Receive(&got); err != nil || got != "still" {
		t.Errorf("got %q, %v", got, err)
	}
	go func() { _, err := a.Receive(new(string)); ended <- err }()
	_ = a.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: got %v", err)
	}
	if err := a.Close(); err == nil || !a.Gone() {
		t.Error("it was closed twice, or does not seem to be gone")
	}
	if err := a.TrySend("late"); err == nil {
		t.Error("a closed connection sends")
	}
}
