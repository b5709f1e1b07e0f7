package keeper

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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

// A number beyond the shelf is not held, and the agent learns of it. There are two shelves, whose names are bounded.
func TestShelfIsBounded(t *testing.T) {
	_, path := start(t, Options{})
	s, _ := openShelf(t, path)
	fd, _ := link(t)
	defer unix.Close(fd)
	if err := s.Keep([]uint32{0, uint32(s.Most())}, []int{fd, fd}); err == nil || errors.Is(err, ErrShelfBusy) {
		t.Errorf("an agent that keeps too many hears %v", err)
	}
	s.most++ // as an agent that does not know
	if err := hears(shelve(t, s, s.most-1)); err != io.EOF {
		t.Errorf("the far end of a socket beyond the shelf hears %v", err)
	}
	shelve(t, s, 0)
	if _, _, err := OpenShelf(t.Context(), path, strings.Repeat("x", MaxKey+1)); err == nil {
		t.Error("a shelf has a name that is too long")
	}
	other, _, err := OpenShelf(t.Context(), path, "other")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenShelf(t.Context(), path, "third"); err == nil {
		t.Error("there is a third shelf")
	}
	other.Close() // an empty shelf is no longer there when it is not used
	await.Until(t, "there is room for another shelf", func() bool {
		third, _, err := OpenShelf(t.Context(), path, "third")
		if err == nil {
			third.Close()
		}
		return err == nil
	})
}

// With more releases than one message carries, a socket that was put under one of their numbers meanwhile stays.
func TestShelfReusesNumbers(t *testing.T) {
	k, path := start(t, Options{})
	s, _ := openShelf(t, path)
	fd, far := link(t)
	defer unix.Close(fd)
	k.mu.Lock() // the keeper is busy
	busy := true
	defer func() {
		if busy {
			k.mu.Unlock()
		}
	}()
	err := s.Keep([]uint32{0}, []int{fd})
	await.Until(t, "the keeper has taken one message, and so takes no more", func() bool {
		stacks := make([]byte, 1<<20)
		return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("keeper.(*Keeper).shelve("))
	})
	for err == nil {
		err = s.Keep([]uint32{0}, []int{fd})
	}
	for slot := range uint32(3 * maxReleases) {
		s.Release(slot + 1)
	}
	const again = 3*maxReleases - 5
	for range 2 {
		if !errors.Is(err, ErrShelfBusy) {
			t.Fatalf("%v, want ErrShelfBusy", err)
		}
		err = s.Keep([]uint32{again}, []int{fd})
	}
	s.timer.Stop() // only Keep sends
	busy = false
	k.mu.Unlock()
	await.Until(t, "the socket is held", func() bool { return s.Keep([]uint32{again}, []int{fd}) == nil })
	s.rearm()
	await.Until(t, "everything was released", func() bool { return !s.anyDrops() })
	s.Close()
	_, found := openShelf(t, path)
	if fd, there := found[again]; !there || !speaks(t, fd, far) {
		t.Errorf("found %v, want number %d", found, again)
	}
	for _, fd := range found {
		unix.Close(fd)
	}
}

// Release waits for nobody who sends to the keeper.
func TestReleaseWaitsForNobody(t *testing.T) {
	_, path := start(t, Options{})
	s, _ := openShelf(t, path)
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for slot := range uint32(2 * releaseAt) {
			s.Release(slot)
		}
	}()
	await.Until(t, "all are released", func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
}

// An agent that goes on without its keeper ends its connections as before: what it has written arrives.
func TestAgentOutlivesKeeper(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	k := New()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Serve(ctx, ln, Options{}) }()
	s, _ := openShelf(t, path)
	fd, far := link(t)
	if err := s.Keep([]uint32{1}, []int{fd}); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the socket is held", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.shelves["test"].fds) == 1
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	said := 0
	for b := make([]byte, 64<<10); ; said += len(b) { // far reads nothing yet
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		b = b[:n]
	}
	unix.Close(fd)
	_ = far.SetReadDeadline(time.Now().Add(await.Patience))
	if got, err := io.Copy(io.Discard, far); err != nil || int(got) != said {
		t.Errorf("%d bytes arrive, %v; want %d", got, err, said)
	}
}

// After Run the shelf is used until it is closed: an agent that is told to end still has connections held, and lets go
// of others.
func TestShelfAfterRun(t *testing.T) {
	_, path := start(t, Options{})
	s, _ := openShelf(t, path)
	released := shelve(t, s, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { defer close(ran); s.Run(ctx, func() { t.Error("the keeper is there") }) }()
	cancel()
	<-ran
	far := shelve(t, s, 2)
	s.Release(1)
	s.Close()
	if err := hears(released); err != io.EOF {
		t.Errorf("the far end of one that was released hears %v", err)
	}
	_, found := openShelf(t, path)
	if len(found) != 1 || !speaks(t, found[2], far) {
		t.Errorf("found %v", found)
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
	s := &Shelf{conn: conn, name: "test", most: 1 << 31}
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
