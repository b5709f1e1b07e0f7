package udprelay

import (
	"errors"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/netstacktest"
)

// shelf holds sockets, as a keeper does. One goroutine at a time uses it.
type shelf struct {
	memory []byte
	fds    map[uint32]int
	fail   error // of the next Keep
}

func newShelf(t *testing.T, slots int) *shelf {
	w := make([]uint64, memo.Size(slots)/8)
	s := &shelf{memory: unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), 8*len(w)), fds: map[uint32]int{}}
	t.Cleanup(func() {
		for _, fd := range s.fds {
			_ = unix.Close(fd)
		}
	})
	return s
}

func (s *shelf) hold(t *testing.T, most int) *Hold {
	t.Helper()
	m, err := memo.Open(s.memory, MemoryKind)
	if err != nil {
		t.Fatal(err)
	}
	h := &Hold{Memory: m, Most: most, Keep: s.keep, Release: s.release, Found: map[uint32]int{}}
	for slot, fd := range s.fds {
		if h.Found[slot], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (s *shelf) keep(slots []uint32, fds []int) error {
	if err := s.fail; err != nil {
		s.fail = nil
		return err
	}
	for i, slot := range slots {
		s.release(slot)
		fd, err := unix.FcntlInt(uintptr(fds[i]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.fds[slot] = fd
	}
	return nil
}

func (s *shelf) release(slot uint32) {
	if fd, there := s.fds[slot]; there {
		_ = unix.Close(fd)
		delete(s.fds, slot)
	}
}

func everywhere(netip.Addr) bool { return true }

// In the next Relay a pod has the same port outside, and whom it has sent to reaches it there before it says anything.
// Others do not. What came meanwhile has waited.
func TestMappingsGoOn(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			sh := newShelf(t, 30)
			w := newWorld(t, Options{Hold: sh.hold(t, 10)})
			one, two, stranger := server(t, f.outside), server(t, f.outside), server(t, f.outside)
			spec := netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Payload: []byte("who am I?")}
			spec.Dst = at(one)
			first := from(t, spec, 0)
			w.send(first)
			_, client := hear(t, one)
			sh.fail = errors.New("the keeper is gone")
			w.relay.Sweep(time.Now())
			if len(sh.fds) != 0 {
				t.Fatal("a socket is held though that failed")
			}
			w.relay.Sweep(time.Now())
			if len(sh.fds) != 1 {
				t.Fatalf("%d sockets are held, want 1", len(sh.fds))
			}
			spec.Dst = at(two)
			second := from(t, spec, 0)
			w.send(second) // a conversation of a mapping that is held
			hear(t, two)
			w.relay.Close()
			for _, s := range []interface {
				WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
			}{stranger, one} {
				if _, err := s.WriteToUDPAddrPort([]byte("meanwhile"), client); err != nil {
					t.Fatal(err)
				}
			}
			w = newWorld(t, Options{Hold: sh.hold(t, 10)})
			if n := w.relay.Resume(everywhere); n != 1 {
				t.Fatalf("%d mappings go on, want 1", n)
			}
			if got := w.datagrams(first.Tuple.Reverse(), 1); string(got[0]) != "meanwhile" {
				t.Errorf("%q came", got[0])
			}
			if _, err := two.WriteToUDPAddrPort([]byte("and you"), client); err != nil {
				t.Fatal(err)
			}
			if got := w.datagrams(second.Tuple.Reverse(), 1); string(got[0]) != "and you" {
				t.Errorf("%q came", got[0])
			}
			if n := w.relay.Stats(); n.Strange != 1 || n.Sockets.Held != 1 || n.Conversations.Held != 2 {
				t.Errorf("%+v", n)
			}
			w.send(second)
			if _, again := hear(t, two); again != client {
				t.Errorf("the pod is %s now, and was %s", again, client)
			}
			// A mapping that is too young to be held is held when the Relay ends in order.
			spec.Src = netip.AddrPortFrom(spec.Src.Addr(), 5001)
			w.send(from(t, spec, 0))
			_, young := hear(t, two)
			w.relay.Close()
			w = newWorld(t, Options{Hold: sh.hold(t, 10)})
			if n := w.relay.Resume(everywhere); n != 2 {
				t.Fatalf("%d mappings go on, want 2", n)
			}
			w.send(from(t, spec, 0))
			if _, again := hear(t, two); again != young {
				t.Errorf("the pod is %s now, and was %s", again, young)
			}
			// When it is over, nobody holds it.
			w.relay.Forget(spec.Src.Addr())
			if len(sh.fds) != 0 {
				t.Errorf("%d sockets are held of a pod that is gone", len(sh.fds))
			}
			if n := w.relay.hold.Memory; n != nil {
				n.Used(func(i uint32) { t.Errorf("slot %d is in use", i) })
			}
		})
	}
}

// What cannot go on is closed: of a pod that is gone, with a record that is torn, or of another socket.
func TestMappingsDoNotGoOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		here  func(netip.Addr) bool
		spoil func(*shelf)
	}{
		{"the pod is gone", func(netip.Addr) bool { return false }, func(*shelf) {}},
		{"torn", everywhere, func(sh *shelf) { sh.memory[4096+8]++ }},
		{"the socket is not there", everywhere, func(sh *shelf) { sh.release(0) }},
		{"another socket", everywhere, func(sh *shelf) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			sh.release(0)
			sh.fds[0] = fd
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sh := newShelf(t, 30)
			w := newWorld(t, Options{Hold: sh.hold(t, 10)})
			s := server(t, families[0].outside)
			w.send(from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(s), Payload: []byte("x")}, 0))
			hear(t, s)
			w.relay.Close()
			c.spoil(sh)
			w = newWorld(t, Options{Hold: sh.hold(t, 10)})
			if n := w.relay.Resume(c.here); n != 0 {
				t.Errorf("%d mappings go on", n)
			}
			if n := w.relay.Stats(); n.Sockets.Held != 0 || n.Conversations.Held != 0 || len(sh.fds) != 0 {
				t.Errorf("%+v, %d held", n, len(sh.fds))
			}
			w.relay.hold.Memory.Used(func(i uint32) { t.Errorf("slot %d is in use", i) })
		})
	}
}

// More mappings than there are slots end with their Relay, and slots are used again.
func TestMappingsWithoutSlot(t *testing.T) {
	sh := newShelf(t, 9)
	w := newWorld(t, Options{Hold: sh.hold(t, 3)})
	s := server(t, families[0].outside)
	for range 2 {
		for i := range uint16(5) {
			src := netip.AddrPortFrom(netip.MustParseAddrPort(families[0].pod).Addr(), 6000+i)
			w.send(from(t, netstacktest.Spec{Src: src, Dst: at(s), Payload: []byte("x")}, 0))
			hear(t, s)
		}
		w.relay.Sweep(time.Now())
		if len(sh.fds) != 3 {
			t.Fatalf("%d sockets are held, want 3", len(sh.fds))
		}
		w.relay.Forget(netip.MustParseAddrPort(families[0].pod).Addr())
		if len(sh.fds) != 0 {
			t.Fatalf("%d sockets are held, want none", len(sh.fds))
		}
	}
}
