package tcprelay_test

import (
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/tcprelay"
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
