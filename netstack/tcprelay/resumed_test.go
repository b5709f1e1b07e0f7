package tcprelay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

func everywhere(netip.Addr) bool { return true }

// newHeld returns a Relay whose connections are held on a shelf.
func newHeld(t *testing.T, slots int) (*script, *shelf) {
	t.Helper()
	sh := newShelf(t, slots)
	return newScriptWith(t, tcprelay.Options{Hold: sh.hold(t)}), sh
}

// nextRelay replaces the Relay by another one, which goes on with want connections and loses lost.
func (s *script) nextRelay(sh *shelf, here func(netip.Addr) bool, want tcprelay.Resumed) {
	s.t.Helper()
	if err := s.r.Close(); err != nil {
		s.t.Fatal(err)
	}
	for len(s.heard) > 0 {
		<-s.heard
	}
	s.o.Hold = sh.hold(s.t)
	s.r = tcprelay.New(s.o)
	if got := s.r.Resume(here); got != want {
		s.t.Fatalf("%+v, want %+v", got, want)
	}
	s.r.GoOn()
}

var one = tcprelay.Resumed{Resumed: 1}

// hearData returns the next segment with new data, whether it was sent by an earlier Relay or not.
func (s *script) hearData() segment {
	s.t.Helper()
	for {
		x := <-s.heard
		if x.of == s.tuple && len(x.payload) > 1 {
			return x.segment
		}
	}
}

// asked waits until the pod is asked how far it is, with an old byte.
func (s *script) asked(at uint32) segment {
	s.t.Helper()
	got := s.hearAgain(ack)
	if got.seq != at-1 || len(got.payload) != 1 {
		s.t.Fatalf("the pod is asked with %d bytes at %d, want an old one at %d", len(got.payload), got.seq, at-1)
	}
	return got
}

func wantServer(t *testing.T, server net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != want {
		t.Fatalf("the server heard %q, %v; want %q", got, err, want)
	}
}

// Both streams go on where they are: what the pod has not acknowledged is sent again, what it has is not, and what the
// socket has accepted is acknowledged.
func TestResumed(t *testing.T) {
	s, sh := newHeld(t, 4)
	server, mine, theirs := s.egress(1000)
	s.say(segment{mine, theirs, psh, 1000, []byte("hello")})
	s.hear(ack)
	wantServer(t, server, "hello")
	if _, err := io.WriteString(server, "0123456789"); err != nil {
		t.Fatal(err)
	}
	s.hear(psh)
	s.nextRelay(sh, everywhere, one)
	if got := s.asked(theirs); got.ack != mine+5 {
		t.Errorf("%d bytes are acknowledged, want 5", got.ack-mine)
	}
	// The pod has got the first four bytes of the ten.
	s.say(segment{mine + 5, theirs + 4, ack, 1000, nil})
	if got := s.hearData(); got.seq != theirs+4 || string(got.payload) != "456789" {
		t.Errorf("heard %q at %d, want the rest at %d", got.payload, got.seq, theirs+4)
	}
	s.say(segment{mine + 5, theirs + 10, psh, 1000, []byte(" again")})
	wantServer(t, server, " again")

	// Both ends of the streams, each with a Relay of its own, and the connection is over.
	s.nextRelay(sh, everywhere, one)
	s.asked(theirs + 4) // the rest was acknowledged and not consumed yet
	s.say(segment{mine + 11, theirs + 10, fin, 1000, nil})
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the server heard %v, want the end", err)
	}
	s.nextRelay(sh, everywhere, one)
	if got := s.asked(theirs + 10); got.ack != mine+12 {
		t.Errorf("the end is acknowledged as %d, want %d", got.ack, mine+12)
	}
	if _, err := io.WriteString(server, "bye"); err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	s.say(segment{mine + 12, theirs + 10, ack, 1000, nil})
	if got := s.hearData(); got.seq != theirs+10 || string(got.payload) != "bye" {
		t.Errorf("heard %q at %d", got.payload, got.seq)
	}
	s.nextRelay(sh, everywhere, one)
	s.asked(theirs + 10)
	s.say(segment{mine + 12, theirs + 13, ack, 1000, nil})
	if got := s.next(fin, func(x *arrival) bool { return x.flags != fin }); got.seq != theirs+13 {
		t.Fatalf("the end is at %d, want %d", got.seq, theirs+13)
	}
	s.nextRelay(sh, everywhere, one)
	s.say(segment{mine + 12, theirs + 14, ack, 1000, nil}) // the end was sent by the Relay before
	await.Until(t, "the connection is over, and nobody holds its socket", func() bool { return s.r.Len() == 0 && sh.len() == 0 })
}

// A connection that was just being opened goes on opening: one of a pod that may not have heard the SYN-ACK, and a
// client's whose pod has not answered.
func TestResumedOpening(t *testing.T) {
	s, sh := newHeld(t, 4)
	l := listen(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 40000, Proto: packet.TCP,
		Dst: packet.AddrFrom(host[0]), DstPort: port(l.Addr()),
	}
	s.say(segment{seq: 999, flags: syn, window: 1000}, 2, 4, 5, 0x64, 1, 3, 3, 2)
	first := s.hear(synAck)
	s.nextRelay(sh, everywhere, one)
	if again := s.hearAgain(synAck); again.seq != first.seq || again.ack != 1000 {
		t.Fatalf("greeted with %d, %d; want %d, 1000", again.seq, again.ack, first.seq)
	}
	s.say(segment{1000, first.seq + 1, psh, 1000, []byte("x")})
	wantServer(t, accept(t, l), "x")

	client, accepted := dialHost(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
		Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
	}
	joined := make(chan error, 1)
	go func() {
		joined <- s.r.Join(context.Background(), accepted, seenAs[0], netip.AddrPortFrom(podIPs[0], 80), nil)
	}()
	first = s.hear(syn)
	s.nextRelay(sh, everywhere, tcprelay.Resumed{Resumed: 2})
	if err := <-joined; err != nil {
		t.Error(err)
	}
	if again := s.hearAgain(syn); again.seq != first.seq {
		t.Fatalf("greeted with %d, want %d", again.seq, first.seq)
	}
	s.say(segment{seq: 5000, ack: first.seq + 1, flags: synAck, window: 1000})
	s.hear(ack)
	s.nextRelay(sh, everywhere, tcprelay.Resumed{Resumed: 2})
	s.say(segment{5001, first.seq + 1, psh, 1000, []byte("served")})
	wantServer(t, client, "served")
}

// What cannot go on is reset on both sides.
func TestNotResumed(t *testing.T) {
	for _, c := range []struct {
		name  string
		here  func(netip.Addr) bool
		spoil func(*shelf)
	}{
		{"the pod is gone", func(netip.Addr) bool { return false }, func(*shelf) {}},
		{"the record is torn", everywhere, func(sh *shelf) { sh.memory[4096+8]++ }},
		{"the socket has another number", everywhere, func(sh *shelf) { sh.memory[4096+8*7]++ }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, sh := newHeld(t, 4)
			server, mine, theirs := s.egress(1000)
			if err := s.r.Close(); err != nil {
				t.Fatal(err)
			}
			c.spoil(sh)
			s.o.Hold = sh.hold(t)
			s.r = tcprelay.New(s.o)
			if got := s.r.Resume(c.here); got.Lost != 1 || got.Resumed != 0 {
				t.Errorf("%+v", got)
			}
			if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server heard %v, want a reset", err)
			}
			if s.r.Len() != 0 || sh.len() != 0 {
				t.Errorf("%d connections, %d sockets", s.r.Len(), sh.len())
			}
			// The stack resets the pod's end, as the Relay does not know the segment.
			if s.delivers(segment{mine, theirs, ack, 1000, nil}) {
				t.Error("the relay knows the connection")
			}
		})
	}
}

// A pod may speak when its connection is known, and before it goes on: what it says arrives, and the pod is sent
// nothing that it may have already.
func TestPodSpeaksBeforeItGoesOn(t *testing.T) {
	s, sh := newHeld(t, 4)
	server, mine, theirs := s.egress(1000)
	if err := s.r.Close(); err != nil {
		t.Fatal(err)
	}
	s.o.Hold = sh.hold(t)
	s.r = tcprelay.New(s.o)
	if got := s.r.Resume(everywhere); got != one {
		t.Fatalf("%+v", got)
	}
	if _, err := io.WriteString(server, "hello"); err != nil {
		t.Fatal(err)
	}
	s.say(segment{mine, theirs, psh, 1000, []byte("early")})
	wantServer(t, server, "early")
	if got := s.hear(ack); got.ack != mine+5 || len(got.payload) > 0 {
		t.Errorf("heard %q, and %d acknowledged; want %d", got.payload, got.ack, mine+5)
	}
	s.r.GoOn()
	if got := s.hearData(); got.seq != theirs || string(got.payload) != "hello" {
		t.Errorf("heard %q at %d", got.payload, got.seq)
	}
}

// A far end that has reset the connection meanwhile is noticed: its last bytes reach the pod, and then the reset.
func TestResumedAfterReset(t *testing.T) {
	s, sh := newHeld(t, 4)
	server, mine, theirs := s.egress(0)
	if _, err := io.WriteString(server, "last words"); err != nil {
		t.Fatal(err)
	}
	if err := s.r.Close(); err != nil {
		t.Fatal(err)
	}
	_ = server.(*net.TCPConn).SetLinger(0)
	_ = server.Close()
	for len(s.heard) > 0 {
		<-s.heard
	}
	s.o.Hold = sh.hold(t)
	s.r = tcprelay.New(s.o)
	s.r.Resume(everywhere)
	s.r.GoOn()
	s.say(segment{mine, theirs, ack, 1000, nil})
	if got := s.hearData(); got.seq != theirs || string(got.payload) != "last words" {
		t.Errorf("heard %q at %d", got.payload, got.seq)
	}
	s.say(segment{mine, theirs + 10, ack, 1000, nil})
	for x := range s.heard {
		if x.flags == rst|ack {
			break
		}
	}
}

// A pod is greeted when its connection is held, however long that takes, and also when nobody can hold it. Then the
// connection ends with its Relay.
func TestKept(t *testing.T) {
	s, sh := newHeld(t, 1)
	sh.fail = tcprelay.ErrKeepLater
	s.egress(1000)
	if n := s.r.Stats().Held; n != 1 || sh.len() != 1 {
		t.Errorf("%d connections outlive the relay, want 1", n)
	}
	// There is no slot for another one.
	l := listen(t, 0)
	s.open(podAddrs[0], 41000, port(l.Addr()))
	second := accept(t, l)
	if n := s.r.Stats().Held; n != 1 {
		t.Errorf("%d connections outlive the relay, want 1", n)
	}
	s.nextRelay(sh, everywhere, one)
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server of one that is not held heard %v, want a reset", err)
	}

	s, sh = newHeld(t, 4)
	sh.fail = errors.New("the keeper is gone")
	s.egress(1000)
	if n := s.r.Stats().Held; n != 0 {
		t.Errorf("%d connections outlive the relay, want none", n)
	}
	s.r.KeepAgain()
	if n := s.r.Stats().Held; n != 1 || sh.len() != 1 {
		t.Errorf("%d connections outlive the relay, want 1", n)
	}
}

// Many connections that open at once are all held, and slots are used again.
func TestManyKept(t *testing.T) {
	s, sh := newHeld(t, 300)
	for range 2 {
		w := listen(t, 0)
		for i := range uint16(300) {
			s.open(podAddrs[0], 2000+i, port(w.Addr()))
		}
		if n := s.r.Stats().Held; n != 300 {
			t.Fatalf("%d are held, want 300", n)
		}
		s.r.Forget(podAddrs[0].Netip())
		await.Until(t, "nothing is held", func() bool { return sh.len() == 0 && s.r.Len() == 0 })
	}
}

// The next Relay does not decide again what an owner may have: an owner that may have no more today keeps what it was
// granted, in whatever order the connections come.
func TestResumedAreNotDecidedAgain(t *testing.T) {
	sh := newShelf(t, 8)
	s := newScriptWith(t, tcprelay.Options{Hold: sh.hold(t), MaxConns: 8})
	a, b := podAddrs[0], podAddrs[1]
	c := a
	c[15] = 12
	l := listen(t, 0)
	n := uint16(0)
	open := func(pod packet.Addr, want int) {
		t.Helper()
		n++
		s.open(pod, 2000+n, port(l.Addr()))
		if got := s.r.Stats(); got.Held != want || got.Opening != 0 {
			t.Fatalf("%+v, want %d that are held", got, want)
		}
	}
	for i, pod := range []packet.Addr{c, c, c, a, a, a} {
		open(pod, i+1)
	}
	s.r.Forget(c.Netip())
	await.Until(t, "three are over", func() bool { return s.r.Stats().Held == 3 })
	for i, pod := range []packet.Addr{a, b, b} { // b's slots are the first ones
		open(pod, i+4)
	}
	s.nextRelay(sh, everywhere, tcprelay.Resumed{Resumed: 6})
	if got := s.r.Stats(); got.Conns != 6 || got.Opening != 0 || got.Most != 4 {
		t.Errorf("%+v", got)
	}
}

// A connection that had ended is not reset when its socket was not released yet: its last bytes still reach a slow far
// end. One that had not ended, of which nothing is known, is reset.
func TestForgottenButHeld(t *testing.T) {
	for _, ends := range []bool{true, false} {
		s, sh := newHeld(t, 1)
		server, mine, theirs := s.egress(1000)
		if err := server.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		s.hear(fin)
		s.say(segment{mine, theirs + 1, ack, 1000, nil})
		said := s.sayMuch(&mine, theirs+1)
		sh.set(false, true)
		if ends {
			s.say(segment{mine, theirs + 1, fin, 1000, nil})
			s.turn.End()
			await.Until(t, "the connection is over", func() bool { return s.r.Len() == 0 })
		}
		if err := s.r.Close(); err != nil {
			t.Fatal(err)
		}
		hold := sh.hold(t)
		hold.Memory.Clear(0)
		sh.set(false, false)
		s.o.Hold = hold
		s.r = tcprelay.New(s.o)
		if got := s.r.Resume(everywhere); got != (tcprelay.Resumed{}) || sh.len() != 0 {
			t.Errorf("%+v, and %d sockets are held", got, sh.len())
		}
		got, err := io.Copy(io.Discard, server)
		if ends && (got != said || err != nil) {
			t.Errorf("the server heard %d bytes of %d, %v", got, said, err)
		}
		if !ends && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server of one that had not ended heard %v, want a reset", err)
		}
	}
}

// While nobody keeps anything, one connection waits, and later ones go on after one attempt. They are kept as soon as
// somebody keeps again.
func TestKeeperHangs(t *testing.T) {
	s, sh := newHeld(t, 8)
	l := listen(t, 0)
	open := func(from uint16) (asks int) {
		t.Helper()
		before := sh.set(from < 2004, false)
		s.open(podAddrs[0], from, port(l.Addr()))
		return sh.set(false, false) - before
	}
	if n := open(2000); n < 2 {
		t.Errorf("the first connection was tried to be kept %d times", n)
	}
	for from := uint16(2001); from < 2004; from++ {
		if n := open(from); n < 1 || n > 100 { // those before are tried again meanwhile
			t.Errorf("a connection was tried to be kept %d times, want once", n)
		}
	}
	await.Until(t, "those that were missed are held", func() bool { return s.r.Stats().Held == 4 })
	open(2004) // it is kept at once
	if n := s.r.Stats().Held; n != 5 {
		t.Errorf("%d are held, want 5", n)
	}
	sh.set(true, false)
	s.r.KeepAgain()
	await.Until(t, "it is tried again and again", func() bool { return sh.set(true, false) > 210 })
}
