package tcprelay_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

const rstAck = packet.RST | packet.ACK

// A far end that accepts no more data may have answered before. Its whole answer arrives, and then the reset, however
// late the pod makes room and however much it sends meanwhile. An HTTP server that refuses an upload behaves like this.
func TestAnswerBeforeReset(t *testing.T) {
	for _, size := range []int{1, 9000} { // 9000 bytes are gathered in a turn, 1 is not
		s := newScript(t)
		server, mine, theirs := s.egress(5)
		s.say(segment{mine, theirs, psh, 5, []byte("x")})
		s.hear(ack)
		if _, err := io.WriteString(server, "0123456789"); err != nil {
			t.Fatal(err)
		}
		if got := s.hear(ack); string(got.payload) != "01234" {
			t.Fatalf("heard %q, want as much as there is room for", got.payload)
		}
		if err := server.Close(); err != nil { // with unread data, which makes it a reset
			t.Fatal(err)
		}
		s.say(segment{mine + 1, theirs, ack, 5, noise(1, size)})
		s.turn.End()
		s.say(segment{mine + 1, theirs + 5, ack, 100, nil})
		if got := s.hear(psh); string(got.payload) != "56789" {
			t.Errorf("heard %q, want the rest of the answer", got.payload)
		}
		s.say(segment{mine + 1, theirs + 10, ack, 100, nil})
		s.hear(rstAck)
	}
}

// A far end that has ended its stream may still reset the connection, and the pod gets the reset without sending
// anything.
func TestResetAfterEnd(t *testing.T) {
	s := newScript(t)
	server, mine, theirs := s.egress(65535)
	if err := server.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.hear(fin)
	s.say(segment{mine, theirs + 1, ack, 65535, nil})
	if err := server.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.hear(rstAck); got.seq != theirs+1 {
		t.Errorf("reset at %d, want %d", got.seq, theirs+1)
	}
}

// A pod accepts a reset only at the number that it expects (RFC 5961 3.2). That is the number after what it
// acknowledged if it had no room for the rest, and the number after the rest otherwise.
func TestResetIsBelieved(t *testing.T) {
	s := newScript(t)
	client, accepted := dialHost(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
		Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.r.Join(ctx, accepted, seenAs[0], netip.AddrPortFrom(podIPs[0], 80), nil) }()
	theirs := s.hear(syn).seq + 1
	s.say(segment{seq: 5000, ack: theirs, flags: synAck, window: 1000})
	s.hear(ack)
	if _, err := io.WriteString(client, "hello"); err != nil {
		t.Fatal(err)
	}
	s.hear(psh)
	s.say(segment{seq: 5001, ack: theirs, flags: ack, window: 0})
	end()
	at := map[uint32]bool{}
	for range 2 {
		at[s.next(rstAck, func(x *arrival) bool { return x.of != s.tuple || x.flags == psh }).seq] = true
	}
	if !at[theirs] || !at[theirs+5] {
		t.Errorf("reset at %v, want %d and %d", at, theirs, theirs+5)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A health check that resets its connection may come again from the same port, as often as it likes.
func TestHalfOpenChecks(t *testing.T) {
	s := newScript(t)
	l := listen(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 40000, Proto: packet.TCP,
		Dst: packet.AddrFrom(host[0]), DstPort: port(l.Addr()),
	}
	for i := range uint32(100) {
		s.say(segment{seq: 1000 * i, flags: syn, window: 1000})
		got := s.hear(synAck)
		if got.ack != 1000*i+1 {
			t.Fatalf("check %d: the SYN-ACK acknowledges %d", i, got.ack)
		}
		s.say(segment{seq: got.ack, flags: rst})
		c := accept(t, l)
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Fatalf("check %d: the server heard %v, want a reset", i, err)
		}
	}
	await.Until(t, "no connection is left", func() bool { return s.r.Len() == 0 })
}

// A pod that has closed its socket costs nothing for long, whatever the far end does: its kernel answers what still
// comes with a reset, and the connection is over.
// What the pod had sent before reaches the far end, as does the end of its stream.
func TestPodClosesFirst(t *testing.T) {
	for _, more := range []string{"", "late"} {
		for _, isHeld := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q, held %v", more, isHeld), func(t *testing.T) { podClosesFirst(t, more, isHeld) })
		}
	}
}

func podClosesFirst(t *testing.T, more string, isHeld bool) {
	s := newScript(t)
	if isHeld {
		s, _ = newHeld(t, 4)
	}
	server, mine, theirs := s.egress(65535)
	said := s.sayMuch(&mine, theirs)
	s.say(segment{mine, theirs, fin, 65535, nil})
	if got := s.hear(ack); got.ack != mine+1 {
		t.Fatalf("the end is acknowledged as %d, want %d", got.ack, mine+1)
	}
	if more != "" {
		if _, err := io.WriteString(server, more); err != nil {
			t.Fatal(err)
		}
		s.hear(psh)
	}
	s.say(segment{seq: mine + 1, flags: rst}) // to that, or to the question whether it lives
	await.Until(t, "the connection is over", func() bool { return s.r.Len() == 0 })
	if got, err := io.Copy(io.Discard, server); err != nil || got != said {
		t.Errorf("the server heard %d bytes, %v; want the %d that the pod has sent, and the end", got, err, said)
	}
}
