package poll_test

import (
	"context"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/test/await"
)

// waiter is a Handler that waits for something other than a descriptor.
type waiter struct {
	end
	p *poll.Poller
	c chan struct{}
}

func (w *waiter) Ready(_ uint32, buf []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n, err := unix.Read(w.fd, buf); n != 1 || err != nil {
		return buf
	}
	w.p.Waiting(true)
	<-w.c
	w.p.Waiting(false)
	w.watch.Arm(poll.In)
	return buf
}

// While handlers wait, as many as there are loops and more, others are called, whether all loops rested before or not.
func TestHandlersThatWait(t *testing.T) {
	p := newPoller(t, 2)
	heard, far := newEnd(t, p, true)
	var waiters []*waiter
	for range 5 {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		w := &waiter{end: end{fd: pair[0]}, p: p, c: make(chan struct{})}
		w.mu.Lock()
		if w.watch, err = p.Add(w.fd, w, poll.In); err != nil {
			t.Fatal(err)
		}
		w.mu.Unlock()
		t.Cleanup(func() { w.watch.Close(); unix.Close(pair[0]); unix.Close(pair[1]) })
		waiters = append(waiters, w)
		w.heard = make(chan string, 1)
		t.Cleanup(func() { close(w.c) })
		go func() {
			for range w.heard {
				_, _ = unix.Write(pair[1], []byte("w"))
			}
		}()
	}
	for range 200 {
		for i, w := range waiters {
			w.heard <- ""
			say(t, far, string(rune('a'+i)))
			heard.want(t, string(rune('a'+i)))
		}
		for _, w := range waiters {
			w.c <- struct{}{}
		}
	}
	for _, w := range waiters {
		close(w.heard)
	}
}

// laster is a Handler that goes on until somebody else was handled.
type laster struct {
	end
	other *end
	far   *os.File // the other's
	got   chan string
}

func (l *laster) Ready(_ uint32, buf []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, err := unix.Read(l.fd, buf); n != 1 || err != nil {
		return buf
	}
	_, _ = l.far.WriteString("other")
	for until := time.Now().Add(await.Patience); len(l.other.heard) == 0 && time.Now().Before(until); {
		l.watch.Lasts()
	}
	select {
	case s := <-l.other.heard:
		l.got <- s
	default:
		l.got <- "nothing"
	}
	l.watch.Arm(poll.In)
	return buf
}

// While a handler goes on, another loop takes its place, though none had anything to do before.
func TestLasts(t *testing.T) {
	p := newPoller(t, 2)
	other, far := newEnd(t, p, true)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &laster{end: end{fd: pair[0]}, other: other, far: far, got: make(chan string, 1)}
	l.mu.Lock()
	l.watch, err = p.Add(l.fd, l, poll.In)
	l.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.watch.Close(); unix.Close(pair[0]); unix.Close(pair[1]) })
	for range 20 {
		if _, err := unix.Write(pair[1], []byte("w")); err != nil {
			t.Fatal(err)
		}
		if got := <-l.got; got != "other" {
			t.Fatalf("amid a long call %s was handled", got)
		}
	}
}

// Somebody who is no handler waits now and then. Then a loop too many is there, and whichever ends leaves one that is
// awake.
func TestOthersThatWait(t *testing.T) {
	p := newPoller(t, 2)
	heard, far := newEnd(t, p, true)
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	others.Go(func() {
		for ctx.Err() == nil {
			p.Waiting(true)
			runtime.Gosched()
			p.Waiting(false)
		}
	})
	for i := range 5000 {
		text := string(rune('a' + i%26))
		say(t, far, text)
		heard.want(t, text)
	}
}
