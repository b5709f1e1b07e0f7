package tcprelay_test

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

// Hundreds of connections go on, revived by several goroutines. The pod is asked first about the one whose socket has
// heard something last, and about all of them until it answers, though it does not hear all questions.
func TestManyResumed(t *testing.T) {
	const n, firstPort = 600, 1000
	s, sh := newHeld(t, n)
	l := listen(t, 0)
	servers, next := make([]net.Conn, n), make([]uint32, n)
	for i := range servers {
		_, next[i] = s.open(podAddrs[0], firstPort+uint16(i), port(l.Addr()))
		servers[i] = accept(t, l)
	}
	await.Until(t, "a time in which no socket hears anything", func() bool { return sh.silentFor(50) })
	s.tuple.SrcPort = firstPort + 7
	if _, err := io.WriteString(servers[7], "last"); err != nil {
		t.Fatal(err)
	}
	if got := s.hear(psh); string(got.payload) != "last" {
		t.Fatalf("heard %q", got.payload)
	}
	next[7] += 4
	s.say(segment{1000, next[7], ack, 65535, nil})

	s.nextRelay(sh, everywhere, tcprelay.Resumed{Resumed: n})
	first := s.tuple
	answered := map[uint16]bool{}
	for giveUp := netstacktest.GiveUp(t); len(answered) < n; {
		select {
		case x := <-s.heard:
			i := x.of.SrcPort - firstPort
			if len(answered) == 0 && x.of != first {
				t.Errorf("connection %d is asked about first", i)
			}
			if len(x.payload) == 0 {
				continue // answers to its answers
			}
			at := next[i]
			if x.of == first {
				at -= 4 // these were acknowledged, and not consumed yet
			}
			if len(x.payload) != 1 || x.seq != at-1 {
				t.Fatalf("connection %d: heard %d bytes at %d, want an old one at %d", i, len(x.payload), x.seq, at-1)
			}
			s.tuple = x.of
			s.say(segment{1000, next[i], ack, 65535, nil})
			answered[i] = true
		case <-giveUp:
			t.Fatalf("asked about %d connections, want %d", len(answered), n)
		}
	}
	for i := 0; i < n; i += 100 {
		s.tuple.SrcPort = firstPort + uint16(i)
		s.say(segment{1000, next[i], psh, 65535, []byte("hello")})
		wantServer(t, servers[i], "hello")
	}
	if got := s.r.Stats(); got.Conns != n || got.Held != n || got.Opening != 0 {
		t.Errorf("%+v", got)
	}
}

// silentFor reports whether no socket on the shelf has received data in the last milliseconds.
func (s *shelf) silentFor(millis uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.fds {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.Last_data_recv < millis {
			return false
		}
	}
	return true
}
