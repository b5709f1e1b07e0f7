package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/await"
)

func openShelf(t *testing.T, path string) (*Shelf, map[uint32]int) {
	t.Helper()
	s, found, err := OpenShelf(t.Context(), path, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, found
}

// link returns a connected TCP socket as a descriptor, and its far end.
func link(t *testing.T) (fd int, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp4", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	defer f.Close()
	if fd, err = fdpass.Dup(f); err != nil {
		t.Fatal(err)
	}
	return fd, far
}

// shelve puts a socket on the shelf, which alone has it then, and returns the far end.
func shelve(t *testing.T, s *Shelf, slot uint32) net.Conn {
	t.Helper()
	fd, far := link(t)
	defer unix.Close(fd)
	if err := s.Keep([]uint32{slot}, []int{fd}); err != nil {
		t.Fatal(err)
	}
	return far
}

// speaks reports whether fd is the other end of far.
func speaks(t *testing.T, fd int, far net.Conn) bool {
	t.Helper()
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := far.Read(make([]byte, 1))
	return err == nil
}

// hears returns the error with which far's stream ends.
func hears(far net.Conn) error {
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := far.Read(make([]byte, 1))
	return err
}

// What was put on a shelf is there for the next agent, however soon this one ends, and more of it than one message
// carries.
func TestShelf(t *testing.T) {
	_, path := start(t, Options{})
	const n = fdpass.MaxFiles + 9
	s, found := openShelf(t, path)
	if len(found) != 0 || s.Most() < n {
		t.Fatalf("found %d, room for %d", len(found), s.Most())
	}
	var far []net.Conn
	for i := range uint32(n) {
		far = append(far, shelve(t, s, i))
	}
	second := shelve(t, s, 7) // in place of the first one
	s.Close()
	s, found = openShelf(t, path)
	if len(found) != n {
		t.Fatalf("found %d sockets, want %d", len(found), n)
	}
	if err := hears(far[7]); err != io.EOF {
		t.Errorf("the far end of one that was replaced hears %v", err)
	}
	if far[7] = second; !speaks(t, found[7], second) {
		t.Error("7 is another socket")
	}
	for slot, fd := range found {
		if slot != 7 && !speaks(t, fd, far[slot]) {
			t.Errorf("%d is another socket", slot)
		}
		unix.Close(fd)
	}
	s.Release(3)
	if err := hears(far[3]); err != io.EOF {
		t.Errorf("the far end of one that was released hears %v", err)
	}
}

// One agent at a time uses a shelf, and the next one finds what the one before sent last.
func TestShelfIsHandedOver(t *testing.T) {
	_, path := start(t, Options{})
	s, _ := openShelf(t, path)
	if _, _, err := OpenShelf(t.Context(), path, "test"); err == nil {
		t.Fatal("two clients use the same shelf")
	}
	for i := range uint32(50) {
		shelve(t, s, i)
		s.Close()
		var found map[uint32]int
		if s, found = openShelf(t, path); len(found) != int(i)+1 {
			t.Fatalf("found %d sockets, want %d", len(found), i+1)
		}
		for _, fd := range found {
			unix.Close(fd)
		}
	}
}

// A number beyond the shelf is not held.
func TestShelfIsBounded(t *testing.T) {
	_, path := start(t, Options{})
	s, _ := openShelf(t, path)
	if err := hears(shelve(t, s, uint32(s.Most()))); err != io.EOF {
		t.Errorf("the far end of a socket beyond the shelf hears %v", err)
	}
}

// An agent of an earlier version knows no shelves: when it has the lease, what is on them is reset.
func TestShelfOfAnEarlierAgent(t *testing.T) {
	_, path := start(t, Options{})
	s, _ := openShelf(t, path)
	far := shelve(t, s, 1)
	s.Close()
	if h, err := Hold(t.Context(), path, "n1", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	} else {
		h.Close() // one of this version drops nothing
	}
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	await.Until(t, "the lease is free", func() bool {
		_, _, err := c.call(t.Context(), request{Op: opClaim, Node: "n1", Sockets: true})
		return err == nil
	})
	if err := hears(far); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the far end hears %v, want a reset", err)
	}
	if _, found := openShelf(t, path); len(found) != 0 {
		t.Errorf("found %d sockets", len(found))
	}
}

// A keeper of an earlier version says that it knows no shelves, and serves everything else.
func TestShelfOfAnEarlierKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- fdpass.Serve(ctx, ln, Options{}, func(_ context.Context, c *fdpass.Conn) {
			var r request
			if _, err := c.Receive(&r); err == nil {
				_ = c.Answer(struct {
					Error string `json:"error"`
				}{`unknown request "` + r.Op + `"`})
			}
		})
	}()
	if _, _, err := OpenShelf(ctx, path, "test"); !errors.Is(err, ErrNoShelf) {
		t.Errorf("%v, want ErrNoShelf", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The next keeper gets everything once more.
func TestShelfOfTheNextKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	serve := func() (end func()) {
		ln, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		k := New()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Serve(ctx, ln, Options{}) }()
		return func() { cancel(); <-done; k.Close() }
	}
	end := serve()
	s, _ := openShelf(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	again, ran := make(chan struct{}), make(chan struct{})
	go func() { defer close(ran); s.Run(ctx, func() { again <- struct{}{} }) }()
	end()
	if err := s.Keep([]uint32{1}, []int{0}); err == nil {
		// The message may have left before the keeper had closed the connection; the next one cannot.
		await.Until(t, "no keeper takes anything", func() bool { return s.Keep([]uint32{1}, []int{0}) != nil })
	}
	end = serve()
	defer end()
	<-again
	far := shelve(t, s, 2)
	cancel()
	<-ran
	s.Close()
	_, found := openShelf(t, path)
	if len(found) != 1 || !speaks(t, found[2], far) {
		t.Errorf("found %v", found)
	}
}

// A keeper that does not read is busy, and holds up nobody.
func TestShelfIsBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := fdpass.Dial(t.Context(), path) // accepted by nobody
	if err != nil {
		t.Fatal(err)
	}
	s := &Shelf{conn: conn, name: "test"}
	defer s.Close()
	slots := slices.Repeat([]uint32{1 << 30}, fdpass.MaxFiles)
	for range 10_000 {
		if err = s.Keep(slots, slices.Repeat([]int{0}, fdpass.MaxFiles)); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrShelfBusy) {
		t.Errorf("%v, want ErrShelfBusy", err)
	}
}
