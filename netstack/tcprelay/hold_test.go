package tcprelay_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

// shelf holds sockets, as a keeper does.
type shelf struct {
	memory []byte

	mu   sync.Mutex
	fds  map[uint32]int
	fail error // of the next Keep
	puts int
	hung bool // Keep fails with ErrKeepLater
	late bool // what is released stays
	asks int  // calls of Keep
}

func newShelf(t testing.TB, slots int) *shelf {
	w := make([]uint64, memo.Size(slots)/8)
	s := &shelf{memory: unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), 8*len(w)), fds: map[uint32]int{}}
	t.Cleanup(func() {
		for _, fd := range s.fds {
			unix.Close(fd)
		}
	})
	return s
}

// hold returns what the next Relay gets.
func (s *shelf) hold(t testing.TB) *tcprelay.Hold {
	t.Helper()
	m, err := memo.Open(s.memory, tcprelay.MemoryKind)
	if err != nil {
		t.Fatal(err)
	}
	found := map[uint32]int{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for slot, fd := range s.fds {
		if found[slot], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	return &tcprelay.Hold{Memory: m, Most: m.Len(), Keep: s.keep, Release: s.release, Found: found}
}

func (s *shelf) keep(slots []uint32, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks++
	if s.hung {
		return tcprelay.ErrKeepLater
	}
	if err := s.fail; err != nil {
		s.fail = nil
		return err
	}
	for i, slot := range slots {
		s.drop(slot)
		fd, err := unix.FcntlInt(uintptr(fds[i]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.fds[slot] = fd
		s.puts++
	}
	return nil
}

func (s *shelf) drop(slot uint32) {
	if fd, there := s.fds[slot]; there {
		unix.Close(fd)
		delete(s.fds, slot)
	}
}

func (s *shelf) release(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.late {
		s.drop(slot)
	}
}

// set changes what the shelf does, and returns how often Keep was called.
func (s *shelf) set(hung, late bool) (asks int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hung, s.late = hung, late
	return s.asks
}

func (s *shelf) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.fds)
}

// Whoever has a socket kept does not wait until those are kept that come meanwhile.
func TestKeptForOthers(t *testing.T) {
	h := newShelf(t, 4).hold(t)
	keep, calls, returned := h.Keep, 0, make(chan struct{})
	var w *world
	_, second := dialHost(t, 0)
	h.Keep = func(slots []uint32, fds []int) error {
		switch calls++; calls {
		case 1:
			join(t, w.Relay, second, netip.AddrPortFrom(seenAs[0].Addr(), 4001), true)
		case 2:
			select {
			case <-returned:
			case <-time.After(await.Patience):
				t.Error("the first one waits for the second")
			}
		}
		return keep(slots, fds)
	}
	w = newWorldWith(t, h)
	inPod, err := w.pod.Listen(netip.AddrPortFrom(podIPs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inPod.Close() })
	_, first := dialHost(t, 0)
	join(t, w.Relay, first, seenAs[0], true)
	close(returned)
	for range 2 {
		if t.Failed() {
			return
		}
		accept(t, inPod)
	}
	await.Until(t, "both are held", func() bool { return w.Stats().Held == 2 })
}
