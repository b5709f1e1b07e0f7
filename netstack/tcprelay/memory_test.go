package tcprelay_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

// open opens a connection from a pod's address and port to a listening server. It returns the next sequence numbers of
// both sides.
func (s *script) open(pod packet.Addr, from, to uint16) (mine, theirs uint32) {
	s.t.Helper()
	s.tuple = packet.Tuple{Src: pod, SrcPort: from, Proto: packet.TCP, Dst: packet.AddrFrom(host[0]), DstPort: to}
	s.say(segment{seq: 999, flags: syn, window: 65535}, 2, 4, 5, 0x64, 1, 3, 3, 14)
	got := s.hear(synAck)
	s.say(segment{seq: 1000, ack: got.seq + 1, flags: ack, window: 65535})
	return 1000, got.seq + 1
}

var podAddrs = []packet.Addr{packet.AddrFrom(podIPs[0]), {10: 0xff, 11: 0xff, 12: 10, 13: 244, 14: 1, 15: 11}}

// An idle connection needs 2,500 bytes at most.
func TestMemoryOfIdleConnections(t *testing.T) {
	s := newScript(t)
	l := listen(t, 0)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 1000 // fewer than a listener's backlog
	before := heap()
	for i := range uint16(n) {
		s.open(podAddrs[0], 1000+i, port(l.Addr()))
	}
	if got := s.r.Stats(); got.Conns != n || got.Opening != 0 || got.Bytes != 0 {
		t.Fatalf("%+v", got)
	}
	// Goroutines of earlier tests may free their memory late on a busy machine.
	var each int64
	await.Until(t, "an idle connection takes 2500 bytes at most", func() bool {
		each = (int64(heap()) - int64(before)) / n
		return each <= 2500
	})
	t.Logf("%d bytes each", each)
}

// Data that a pod does not acknowledge, or that a server does not read, takes bounded memory, and other pods do not
// notice.
func TestMemoryIsBounded(t *testing.T) {
	const most = 8 << 20
	for _, c := range []struct {
		name  string
		abuse func(s *script, c net.Conn, mine, theirs uint32)
	}{
		{"a pod that acknowledges nothing", func(s *script, c net.Conn, _, _ uint32) {
			go func() { _, _ = c.Write(make([]byte, 4<<20)) }()
		}},
		{"a server that does not read", func(s *script, c net.Conn, mine, theirs uint32) {
			for range 200 { // more than the socket buffers hold
				s.say(segment{mine, theirs, ack, 65535, make([]byte, 60000)})
				mine += 60000
			}
			s.turn.End()
		}},
		{"a pod that leaves holes", func(s *script, c net.Conn, mine, theirs uint32) {
			for i := range uint32(15) {
				s.say(segment{mine + 1 + i*60000, theirs, ack, 65535, make([]byte, 60000)})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScriptWith(t, tcprelay.Options{MaxBytes: most})
			l := listen(t, 0)
			var abuse []func()
			for i := range uint16(20) {
				mine, theirs := s.open(podAddrs[0], 1000+i, port(l.Addr()))
				tuple, server := s.tuple, accept(t, l)
				abuse = append(abuse, func() {
					s.tuple = tuple
					c.abuse(s, server, mine, theirs)
				})
			}
			s.quiet(podAddrs[1])
			for _, f := range abuse {
				f()
			}
			for s.r.Stats().Bytes < most/3 {
				time.Sleep(time.Millisecond)
			}
			// The greedy pod has half of the memory, and the other one gets what it needs.
			mine, theirs := s.open(podAddrs[1], 1000, port(l.Addr()))
			server := accept(t, l)
			if _, err := io.WriteString(server, "for you"); err != nil {
				t.Fatal(err)
			}
			if got := s.hear(psh); string(got.payload) != "for you" {
				t.Errorf("the other pod heard %q", got.payload)
			}
			s.say(segment{mine, theirs + 7, psh, 65535, []byte("from me")})
			got := make([]byte, 7)
			_ = server.SetDeadline(netstacktest.Until(t))
			if _, err := io.ReadFull(server, got); err != nil || string(got) != "from me" {
				t.Errorf("the server heard %q, %v", got, err)
			}
			stats := s.r.Stats()
			t.Logf("%+v", stats)
			if stats.Bytes > most/2+1<<17 || stats.Bytes < most/8 {
				t.Errorf("%d bytes are kept, of %d that may be", stats.Bytes, most)
			}
		})
	}
}

// Segments behind a hole are charged what they cost, and that is much more than one byte.
func TestMemoryOfSmallHoles(t *testing.T) {
	s := newScript(t)
	_, mine, theirs := s.egress(65535)
	const n = 100
	for i := range uint32(n) {
		s.say(segment{mine + 1 + 2*i, theirs, ack, 65535, []byte{1}})
	}
	if got := s.r.Stats().Bytes; got < 64*n {
		t.Errorf("%d pieces of one byte are charged %d bytes", n, got)
	}
	s.say(segment{mine, theirs, ack, 65535, make([]byte, 2*n)})
	s.turn.End()
	if got := s.r.Stats().Bytes; got != 0 {
		t.Errorf("%d bytes are charged when no hole is left", got)
	}
}
