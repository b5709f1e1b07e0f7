package poll_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/test/await"
)

// end is one end of a socket pair, which a Poller watches. It passes on what it reads. It arms itself again if again is
// set.
type end struct {
	fd    int
	again bool

	mu    sync.Mutex
	watch *poll.Watch
	heard chan string
}

func (e *end) Ready(_ uint32, buf []byte) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, err := unix.Read(e.fd, buf)
	if err != nil {
		return buf // called without an event
	}
	e.heard <- string(buf[:n])
	if e.again {
		e.watch.Arm(poll.In)
	}
	return buf
}

// newEnd returns a watched end, and the other end to write to.
func newEnd(t *testing.T, p *poll.Poller, again bool) (e *end, far *os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	e = &end{fd: pair[0], again: again, heard: make(chan string, 100)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watch, err = p.Add(e.fd, e, poll.In); err != nil {
		t.Fatal(err)
	}
	far = os.NewFile(uintptr(pair[1]), "far")
	t.Cleanup(func() { e.watch.Close(); unix.Close(e.fd); far.Close() })
	return e, far
}

func (e *end) want(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-e.heard:
		if got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	case <-time.After(await.Patience):
		t.Fatalf("%q was not heard", want)
	}
}

func say(t *testing.T, f *os.File, s string) {
	t.Helper()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func newPoller(t *testing.T, loops int) *poll.Poller {
	t.Helper()
	p, err := poll.New(loops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // runs after the cleanups of the ends
	return p
}

// Data that arrives while a descriptor is disarmed is reported when it is armed again, and not before.
func TestOneShot(t *testing.T) {
	p := newPoller(t, 1)
	e, far := newEnd(t, p, false)
	say(t, far, "one")
	e.want(t, "one")
	say(t, far, "two")
	other, otherFar := newEnd(t, p, true)
	say(t, otherFar, "other")
	other.want(t, "other") // the only loop has handled what was ready before
	select {
	case got := <-e.heard:
		t.Errorf("heard %q, though disarmed", got)
	default:
	}
	e.watch.Arm(poll.In)
	e.want(t, "two")
}

// Slots of closed Watches are used again, and many descriptors are not confused.
func TestManyAndReused(t *testing.T) {
	p := newPoller(t, 3)
	for range 3 {
		var ends []*end
		var fars []*os.File
		for range 100 {
			e, far := newEnd(t, p, true)
			ends, fars = append(ends, e), append(fars, far)
		}
		for i, far := range fars {
			say(t, far, string(rune('a'+i)))
		}
		for i, e := range ends {
			e.want(t, string(rune('a'+i)))
			e.watch.Close()
			e.watch.Close()
			e.watch.Arm(poll.In) // does nothing
		}
	}
}

func TestClose(t *testing.T) {
	p := newPoller(t, 2)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if _, err := p.Add(0, &end{}, poll.In); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Add after Close: %v", err)
	}
}
