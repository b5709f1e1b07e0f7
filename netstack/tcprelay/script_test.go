package tcprelay_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// script is a Relay. The test plays its pod, segment by segment.
type script struct {
	t     testing.TB
	r     *tcprelay.Relay
	o     tcprelay.Options
	turn  tcprelay.Turn
	heard chan arrival
	known map[repeated]bool           // segments that were heard before
	tuple packet.Tuple                // of the pod's segments in the present connection
	only  atomic.Pointer[packet.Addr] // only segments to this pod are heard; nil: all are
	// urgent is the urgent pointer of the segments that the pod sends.
	urgent uint16
}

// segment is a segment that the pod sends or receives.
type segment struct {
	seq, ack uint32
	flags    uint8
	window   uint16
	payload  []byte
}

// arrival is a segment for the pod's end of a connection. of is the tuple of that end's own segments.
type arrival struct {
	segment
	of packet.Tuple
}

// repeated identifies a segment and its retransmissions, which a busy machine causes when the test answers late.
type repeated struct {
	of    packet.Tuple
	seq   uint32
	flags uint8
	n     int
}

func (x *arrival) key() repeated { return repeated{x.of, x.seq, x.flags &^ packet.PSH, len(x.payload)} }

func newScript(t testing.TB) *script {
	t.Helper()
	return newScriptWith(t, tcprelay.Options{})
}

func newScriptWith(t testing.TB, o tcprelay.Options) *script {
	t.Helper()
	return newScriptSeen(t, o, func([]byte) {})
}

// newScriptSeen is newScriptWith that shows see each packet of the relay.
func newScriptSeen(t testing.TB, o tcprelay.Options, see func(ip []byte)) *script {
	t.Helper()
	poller, err := poll.New(1)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, heard: make(chan arrival, 100), known: map[repeated]bool{}}
	o.Asks = asks
	o.Poller, o.MTU, o.Refuse = poller, func() int { return mtu }, func(*packet.Packet, packet.ICMPError, packet.Addr) {}
	o.Send = func(ip []byte, vnet packet.VNetHdr) {
		var p packet.Packet
		if fault := p.ParseIP(ip); fault != packet.Good {
			t.Errorf("the relay sent a packet with fault %d", fault)
			return
		}
		if only := s.only.Load(); only != nil && p.Tuple.Dst != *only {
			return
		}
		see(ip)
		h := p.IP[p.L4:]
		select {
		case s.heard <- arrival{segment{
			binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:]), h[13], binary.BigEndian.Uint16(h[14:]),
			append([]byte(nil), p.IP[p.Payload:]...),
		}, p.Tuple.Reverse()}:
		default: // the test does not read
		}
	}
	s.r, s.o = tcprelay.New(o), o
	t.Cleanup(func() {
		if err := s.r.Close(); err != nil {
			t.Error(err)
		}
		if err := poller.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// say passes a segment of the pod to the relay, in a turn that is not ended.
func (s *script) say(x segment, options ...byte) {
	s.t.Helper()
	if !s.delivers(x, options...) {
		s.t.Fatalf("the relay does not know %+v", x)
	}
}

// delivers is say for a segment that the relay may not know. It reports whether it did.
func (s *script) delivers(x segment, options ...byte) bool {
	s.t.Helper()
	h := packet.TCPHeader{Seq: x.seq, Ack: x.ack, Flags: x.flags, Window: x.window, Options: options}
	frame := make([]byte, packet.HeadLen+packet.TCPHeadLen(&s.tuple.Src)+len(options)+len(x.payload), packet.MaxFrame)
	head, vnet := packet.PutTCP(frame[packet.HeadLen:], &s.tuple, &h, len(x.payload), 1380)
	copy(frame[packet.HeadLen+head:], x.payload)
	binary.BigEndian.PutUint16(frame[packet.HeadLen+packet.TCPHeadLen(&s.tuple.Src)-2:], s.urgent)
	var p packet.Packet
	if fault := p.ParseIP(frame[packet.HeadLen:]); fault != packet.Good {
		s.t.Fatalf("fault %d", fault)
	}
	p.VNet = vnet
	p.PutHead(frame, podMAC, podMAC)
	if fault := p.ParseFrame(frame); fault != packet.Good {
		s.t.Fatalf("fault %d", fault)
	}
	return s.r.Deliver(&p, &s.turn, true)
}

// hear returns the next segment of the present connection, which must have these flags. It skips segments that were
// heard before; hearAgain does not.
func (s *script) hear(flags uint8) segment {
	s.t.Helper()
	return s.next(flags, func(x *arrival) bool {
		again := s.known[x.key()]
		return x.of != s.tuple || again && (x.flags != flags || flags&packet.SYN != 0 || len(x.payload) > 0)
	})
}

// hearAgain returns the next segment of the present connection, whether it was heard before or not.
func (s *script) hearAgain(flags uint8) segment {
	s.t.Helper()
	return s.next(flags, func(x *arrival) bool { return x.of != s.tuple })
}

func (s *script) next(flags uint8, skip func(*arrival) bool) segment {
	s.t.Helper()
	for giveUp := netstacktest.GiveUp(s.t); ; {
		select {
		case x := <-s.heard:
			if skip(&x) {
				continue
			}
			if x.flags != flags {
				s.t.Fatalf("heard a segment with flags %#x, want %#x: seq %d, ack %d, %d bytes", x.flags, flags, x.seq, x.ack, len(x.payload))
			}
			s.known[x.key()] = true
			return x.segment
		case <-giveUp:
			s.t.Fatalf("heard nothing, want a segment with flags %#x", flags)
		}
	}
}

// silent checks that no new segment has come.
func (s *script) silent() {
	s.t.Helper()
	for {
		select {
		case x := <-s.heard:
			if !s.known[x.key()] {
				s.t.Fatalf("heard a segment with flags %#x: seq %d, ack %d, %d bytes", x.flags, x.seq, x.ack, len(x.payload))
			}
		default:
			return
		}
	}
}

// quiet makes the test hear only what is sent to pod but.
func (s *script) quiet(but packet.Addr) {
	s.only.Store(&but)
	for len(s.heard) > 0 {
		<-s.heard
	}
}

const (
	syn    = packet.SYN
	ack    = packet.ACK
	synAck = packet.SYN | packet.ACK
	rst    = packet.RST
	psh    = packet.PSH | packet.ACK
	fin    = packet.FIN | packet.ACK
)

// egress opens a connection to a server on the host. It returns the next sequence numbers of both sides.
func (s *script) egress(window uint16) (server net.Conn, mine, theirs uint32) {
	s.t.Helper()
	l := listen(s.t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 40000, Proto: packet.TCP,
		Dst: packet.AddrFrom(host[0]), DstPort: port(l.Addr()),
	}
	s.say(segment{seq: 999, flags: syn, window: window}, 2, 4, 5, 0x64, 1, 3, 3, 0)
	got := s.hear(synAck)
	if got.ack != 1000 {
		s.t.Fatalf("the SYN-ACK acknowledges %d", got.ack)
	}
	s.say(segment{seq: 1000, ack: got.seq + 1, flags: ack, window: window})
	return accept(s.t, l), 1000, got.seq + 1
}

// sayMuch says more than the server's kernel accepts while the server does not read, and less than the relay's socket
// does. It returns how many bytes.
func (s *script) sayMuch(mine *uint32, theirs uint32) (said int64) {
	s.t.Helper()
	const size = 40_000
	for said < 10*size {
		s.say(segment{*mine, theirs, ack, 65535, noise(1, size)})
		s.turn.End()
		*mine += size
		said += size
		if got := s.hear(ack); got.ack != *mine {
			s.t.Fatalf("acknowledged up to %d, want %d", got.ack, *mine)
		}
	}
	return said
}

// Superframes are written and acknowledged several at a time, before the segments that follow them.
func TestBulk(t *testing.T) {
	s := newScript(t)
	server, mine, theirs := s.egress(65535)
	const size, frames = 40000, 11
	said := noise(5, frames*size+10)
	for i := range frames {
		s.say(segment{mine, theirs, ack, 65535, said[i*size:][:size]})
		mine += size
	}
	if got := s.hear(ack); got.ack != 1000+8*size {
		t.Errorf("acknowledged up to %d bytes at once, want 8 superframes", got.ack-1000)
	}
	s.silent()
	s.turn.End()
	if got := s.hear(ack); got.ack != mine {
		t.Errorf("acknowledged %d bytes at the end of the turn, want %d", got.ack-1000, mine-1000)
	}
	// A superframe and the end of the stream come in one turn.
	s.say(segment{mine - size, theirs, ack, 65535, said[:size]}) // came before
	s.hear(ack)
	s.say(segment{mine, theirs, fin, 65535, said[frames*size:]})
	if got := s.hear(ack); got.ack != mine+11 {
		t.Errorf("the end is acknowledged as %d, want %d", got.ack, mine+11)
	}
	s.turn.End()
	s.silent()
	got, err := io.ReadAll(server)
	if err != nil || string(got) != string(said) {
		t.Errorf("the server heard %d bytes, %v; want the %d that were said", len(got), err, len(said))
	}
}

// What the pod does not acknowledge is retransmitted: after a timeout, and at once after three duplicate
// acknowledgements.
func TestRepeats(t *testing.T) {
	s := newScript(t)
	server, mine, theirs := s.egress(65535)
	for _, msg := range []string{"one", "two", "three", "four"} {
		if _, err := io.WriteString(server, msg); err != nil {
			t.Fatal(err)
		}
		if got := s.hear(psh); string(got.payload) != msg {
			t.Fatalf("heard %q, want %q", got.payload, msg)
		}
	}
	first := s.hearAgain(psh) // nothing was acknowledged
	if first.seq != theirs || string(first.payload) != "one" {
		t.Errorf("repeated %q at %d, want the first at %d", first.payload, first.seq, theirs)
	}
	// "two" is missing.
	again := func() string {
		for {
			if got := s.hearAgain(psh); got.seq != theirs { // on a busy machine the first one comes more than once
				return string(got.payload)
			}
		}
	}
	s.say(segment{mine, theirs + 3, ack, 65535, nil})
	if got := again(); got != "two" {
		t.Errorf("after a partial acknowledgement came %q", got)
	}
	for range 3 {
		s.say(segment{mine, theirs + 3, ack, 65535, nil})
	}
	if got := again(); got != "two" {
		t.Errorf("after three duplicates came %q", got)
	}
	s.say(segment{mine, theirs + 15, ack, 65535, nil})
	s.silent()
}

// The relay never sends more than the pod has room for, and probes a pod without room.
func TestPodsWindow(t *testing.T) {
	s := newScript(t)
	server, mine, theirs := s.egress(5)
	if _, err := io.WriteString(server, "0123456789"); err != nil {
		t.Fatal(err)
	}
	if got := s.hear(ack); string(got.payload) != "01234" {
		t.Errorf("heard %q, want as much as there is room for", got.payload)
	}
	s.say(segment{mine, theirs + 5, ack, 0, nil})
	if got := s.hear(ack); got.seq != theirs+4 || len(got.payload) != 0 {
		t.Errorf("heard %q at %d, want a probe at %d", got.payload, got.seq, theirs+4)
	}
	s.say(segment{mine, theirs + 5, ack, 100, nil})
	if got := s.hear(psh); string(got.payload) != "56789" {
		t.Errorf("heard %q, want the rest", got.payload)
	}
}

// A pod that still has an older connection on the same ports is told to forget it.
func TestOlderConnection(t *testing.T) {
	s := newScript(t)
	_, accepted := dialHost(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
		Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
	}
	ended := make(chan error, 1)
	go func() { ended <- s.r.Join(t.Context(), accepted, seenAs[0], netip.AddrPortFrom(podIPs[0], 80), nil) }()
	first := s.hear(syn)
	s.say(segment{seq: 7, ack: first.seq - 1000, flags: ack, window: 1000}) // TIME_WAIT
	if got := s.hear(rst); got.seq != first.seq-1000 {
		t.Errorf("reset at %d, want %d", got.seq, first.seq-1000)
	}
	if again := s.hearAgain(syn); again.seq != first.seq {
		t.Errorf("a new SYN begins at %d, want %d", again.seq, first.seq)
	}
	s.say(segment{seq: 5000, ack: first.seq + 1, flags: synAck, window: 1000})
	if got := s.hear(ack); got.ack != 5001 {
		t.Errorf("acknowledged %d, want 5001", got.ack)
	}
	s.say(segment{seq: 5001, ack: first.seq + 1, flags: rst | ack})
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// No segment of a pod does harm: neither before the connection is open nor with senseless numbers.
func FuzzPod(f *testing.F) {
	f.Add(uint32(1000), uint32(0), uint8(ack), uint16(1000), []byte("hello"), uint8(1))
	f.Add(uint32(1000), uint32(0), uint8(ack), uint16(1000), make([]byte, 9000), uint8(5))
	f.Add(uint32(1<<31), uint32(1<<31), uint8(fin), uint16(0), []byte{}, uint8(3))
	f.Fuzz(func(t *testing.T, seq, ackd uint32, flags uint8, window uint16, b []byte, n uint8) {
		s := newScript(t)
		l := listen(t, 0)
		s.tuple = packet.Tuple{
			Src: packet.AddrFrom(podIPs[0]), SrcPort: 40000, Proto: packet.TCP,
			Dst: packet.AddrFrom(host[0]), DstPort: port(l.Addr()),
		}
		s.say(segment{seq: 999, flags: syn, window: window})
		var p packet.Packet
		for i := range n % 8 {
			h := packet.TCPHeader{Seq: seq + uint32(i)*uint32(len(b)), Ack: ackd, Flags: flags, Window: window}
			b = b[:min(len(b), 60000)]
			frame := make([]byte, packet.HeadLen+40+len(b), packet.MaxFrame)
			packet.PutTCP(frame[packet.HeadLen:], &s.tuple, &h, len(b), 65535)
			copy(frame[packet.HeadLen+40:], b)
			if fault := p.ParseIP(frame[packet.HeadLen:]); fault != packet.Good {
				t.Fatalf("fault %d", fault)
			}
			p.Buf = frame
			s.r.Deliver(&p, &s.turn, true)
		}
		s.turn.End()
	})
}
