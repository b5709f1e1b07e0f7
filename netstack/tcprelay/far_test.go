package tcprelay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

// elsewhere makes all pods those of other nodes.
func elsewhere(packet.Addr) (int, bool) { return mtu, true }

// What a network loses is sent again, in both directions, and everything arrives once and in order.
func TestFarLoss(t *testing.T) {
	for i, loss := range []int64{0, 5, 30, 100} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			t.Parallel()
			var hold *tcprelay.Hold
			if i%2 == 1 {
				hold = newShelf(t, 8).hold(t)
			}
			w := newFarWorld(t, hold)
			w.loss.Store(loss)
			j := w.join(t, i%2)
			size := 400 << 10
			if loss == 0 {
				size = 2 << 20
			}
			exchange(t, j.client, j.server, size)
			_, _ = j.client.Close(), j.server.Close()
			if err := <-j.err; err != nil {
				t.Error(err)
			}
		})
	}
}

// farScript is a client joined to a pod of another node, which the test plays. It returns the next sequence numbers of
// both sides, when the pod has room for 64,000 bytes.
func farScript(t *testing.T, hold *tcprelay.Hold, options ...byte) (s *script, client net.Conn, mine, theirs uint32) {
	t.Helper()
	s = newScriptWith(t, tcprelay.Options{Far: elsewhere, Hold: hold})
	client, accepted := dialHost(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
		Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
	}
	go func() {
		_ = s.r.Join(context.Background(), accepted, seenAs[0], netip.AddrPortFrom(podIPs[0], 80), nil)
	}()
	first := s.hear(syn)
	s.say(segment{seq: 5000, ack: first.seq + 1, flags: synAck, window: 64000}, append([]byte{2, 4, 5, 0x64}, options...)...)
	s.hear(ack)
	return s, client, 5001, first.seq + 1
}

// withSACK says that the pod takes selective acknowledgements.
var withSACK = []byte{1, 1, 4, 2}

func sacks(blocks ...uint32) []byte {
	o := []byte{1, 1, 5, byte(2 + 4*len(blocks))}
	for _, b := range blocks {
		o = binary.BigEndian.AppendUint32(o, b)
	}
	return o
}

// hearBytes hears new data until n bytes came, and returns where they end.
func (s *script) hearBytes(n int) (end uint32) {
	s.t.Helper()
	for n > 0 {
		x := <-s.heard
		if x.of == s.tuple && len(x.payload) > 0 && !s.known[x.key()] {
			s.known[x.key()] = true
			n -= len(x.payload)
			end = x.seq + uint32(len(x.payload))
		}
	}
	return end
}

// hearRepeated returns the next segment with data, whether it was heard before or not.
func (s *script) hearRepeated() segment {
	s.t.Helper()
	for {
		if x := <-s.heard; x.of == s.tuple && len(x.payload) > 0 {
			return x.segment
		}
	}
}

// A connection begins with ten segments, and what is acknowledged makes room for twice as much.
func TestFarBeginsSlowly(t *testing.T) {
	s, client, mine, theirs := farScript(t, nil, withSACK...)
	go func() { _, _ = client.Write(make([]byte, 200_000)) }()
	const most = 10 * 1380
	if end := s.hearBytes(most); end != theirs+most {
		t.Fatalf("heard up to %d, want %d", end-theirs, most)
	}
	s.say(segment{mine, theirs + most, ack, 64000, nil})
	if end := s.hearBytes(2 * most); end != theirs+3*most {
		t.Fatalf("heard up to %d, want %d", end-theirs, 3*most)
	}
}

// Exactly the segments that are missing are sent again, at once, and in order.
func TestFarHoles(t *testing.T) {
	s, client, mine, theirs := farScript(t, nil, withSACK...)
	if _, err := client.Write(noise(1, 13800)); err != nil {
		t.Fatal(err)
	}
	s.hearBytes(13800)
	began := time.Now()
	// Segments 2 and 4 of ten are missing, and three and more have arrived behind each.
	s.say(segment{mine, theirs + 1380, ack, 64000, nil})
	s.say(segment{mine, theirs + 1380, ack, 64000, nil}, sacks(theirs+4*1380, theirs+10*1380, theirs+2*1380, theirs+3*1380)...)
	for _, at := range []uint32{1380, 3 * 1380} {
		got := s.hearRepeated()
		if got.seq != theirs+at || string(got.payload) != string(noise(1, 13800)[at:at+1380]) {
			t.Fatalf("%d bytes at %d were sent again, want 1380 at %d", len(got.payload), got.seq-theirs, at)
		}
	}
	if took := time.Since(began); took > 150*time.Millisecond {
		t.Logf("it took %v", took) // a busy machine may take longer than the timeout
	}
	s.say(segment{mine, theirs + 13800, ack, 64000, nil})
	if _, err := client.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if got := s.hearData(); got.seq != theirs+13800 || string(got.payload) != "new" {
		t.Errorf("heard %q at %d", got.payload, got.seq-theirs)
	}
}

// A pod without selective acknowledgements tells of a loss by three duplicates; each acknowledgement of a part then
// tells of the next one.
func TestFarWithoutSACK(t *testing.T) {
	s, client, mine, theirs := farScript(t, nil)
	if _, err := client.Write(noise(1, 13800)); err != nil {
		t.Fatal(err)
	}
	s.hearBytes(13800)
	for range 4 {
		s.say(segment{mine, theirs + 1380, ack, 64000, nil})
	}
	if got := s.hearRepeated(); got.seq != theirs+1380 {
		t.Fatalf("%d was sent again, want 1380", got.seq-theirs)
	}
	s.say(segment{mine, theirs + 3*1380, ack, 64000, nil})
	for {
		got := s.hearRepeated()
		if got.seq == theirs+3*1380 {
			break
		}
		if got.seq != theirs+1380 { // a busy machine may have let the timeout pass
			t.Fatalf("%d was sent again, want %d", got.seq-theirs, 3*1380)
		}
	}
}

// When nothing is acknowledged, one segment is sent again and not the whole flight.
func TestFarTimeout(t *testing.T) {
	s, client, mine, theirs := farScript(t, nil, withSACK...)
	if _, err := client.Write(noise(1, 13800)); err != nil {
		t.Fatal(err)
	}
	s.hearBytes(13800)
	got := s.hearRepeated()
	if got.seq != theirs || len(got.payload) != 1380 {
		t.Fatalf("%d bytes at %d were sent again, want a segment at 0", len(got.payload), got.seq-theirs)
	}
	// Two more follow when that is acknowledged: the window grows from one segment.
	s.say(segment{mine, theirs + 1380, ack, 64000, nil})
	for want := theirs + 1380; want < theirs+3*1380; {
		got := s.hearRepeated()
		if got.seq == theirs && len(got.payload) == 1380 {
			continue // the timer was faster
		}
		if got.seq != want {
			t.Fatalf("%d was sent again, want %d", got.seq-theirs, want-theirs)
		}
		want += uint32(len(got.payload))
	}
}

// What comes after a hole is acknowledged selectively, the last range first (RFC 2018 4).
func TestFarTellsHoles(t *testing.T) {
	var last []byte
	heard := make(chan []byte, 100)
	s := newScriptSeen(t, tcprelay.Options{Far: elsewhere}, func(ip []byte) {
		var p packet.Packet
		if p.ParseIP(ip) == packet.Good && len(p.IP[p.L4:p.Payload]) > 20 && p.TCPFlags == packet.ACK {
			heard <- slices.Clone(p.IP[p.L4+20 : p.Payload])
		}
	})
	client, accepted := dialHost(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
		Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
	}
	go func() {
		_ = s.r.Join(context.Background(), accepted, seenAs[0], netip.AddrPortFrom(podIPs[0], 80), nil)
	}()
	first := s.hear(syn)
	theirs, mine := first.seq+1, uint32(5001)
	s.say(segment{seq: 5000, ack: theirs, flags: synAck, window: 64000}, append([]byte{2, 4, 5, 0x64}, withSACK...)...)
	s.hear(ack)
	await.Until(t, "the client is joined", func() bool { return s.r.Stats().Opening == 0 })
	for _, c := range []struct {
		at   uint32
		want []byte
	}{
		{100, sacks(mine+100, mine+110)},
		{110, sacks(mine+100, mine+120)},
		{200, sacks(mine+200, mine+210, mine+100, mine+120)},
		{50, sacks(mine+50, mine+60, mine+100, mine+120, mine+200, mine+210)},
		{300, sacks(mine+300, mine+310, mine+50, mine+60, mine+100, mine+120)},
	} {
		s.say(segment{mine + c.at, theirs, ack, 64000, make([]byte, 10)})
		for last = <-heard; string(last) != string(c.want); last = <-heard {
			if len(heard) == 0 && len(last) >= len(c.want) {
				t.Fatalf("after %d: %v, want %v", c.at, last, c.want)
			}
		}
	}
	s.say(segment{mine, theirs, ack, 64000, make([]byte, 50)})
	got := make([]byte, 60)
	if _, err := io.ReadFull(client, got); err != nil {
		t.Error(err)
	}
}

// A pod that cannot be reached is as one that refuses, but not one that was reached before.
func TestFarUnreachable(t *testing.T) {
	s := newScriptWith(t, tcprelay.Options{Far: elsewhere})
	_, accepted := dialHost(t, 0)
	s.tuple = packet.Tuple{
		Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
		Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
	}
	done := make(chan error, 1)
	go func() {
		done <- s.r.Join(context.Background(), accepted, seenAs[0], netip.AddrPortFrom(podIPs[0], 80), nil)
	}()
	s.hear(syn)
	if !s.r.Carries(&s.tuple) {
		t.Fatal("the connection is not known")
	}
	s.r.Unreachable(&s.tuple)
	var refused *tcprelay.RefusedError
	if err := <-done; !errors.As(err, &refused) {
		t.Fatalf("Join returns %v", err)
	}
	_ = refused.Client.Close()

	s, client, mine, theirs := farScript(t, nil, withSACK...)
	s.r.Unreachable(&s.tuple)
	s.say(segment{mine, theirs, psh, 64000, []byte("still here")})
	wantServer(t, client, "still here")
}

// A connection to a pod of another node goes on in the next Relay, which knows that the pod is elsewhere, and is lost
// when no node has the pod's address any more.
func TestFarResumed(t *testing.T) {
	sh := newShelf(t, 4)
	s, client, mine, theirs := farScript(t, sh.hold(t), withSACK...)
	if _, err := io.WriteString(client, "0123456789"); err != nil {
		t.Fatal(err)
	}
	s.hearBytes(10)
	nowhere := func(netip.Addr) bool { return false }
	s.nextRelay(sh, nowhere, one)
	s.asked(theirs)
	s.say(segment{mine, theirs + 4, ack, 64000, nil})
	if got := s.hearData(); got.seq != theirs+4 || string(got.payload) != "456789" {
		t.Errorf("heard %q at %d, want the rest", got.payload, got.seq-theirs)
	}
	s.say(segment{mine, theirs + 10, psh, 64000, []byte("served")})
	wantServer(t, client, "served")
	s.o.Far = nil
	s.nextRelay(sh, nowhere, tcprelay.Resumed{Lost: 1})
	if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the client heard %v, want a reset", err)
	}
}

// What a far pod has sent while no Relay ran is lost. The next one has its kernel send that again at once: an ICMP
// error quotes the first number that is not acknowledged. A pod of this node, whose frames wait in its TAP, is told
// nothing.
func TestFarHurries(t *testing.T) {
	for _, far := range []bool{true, false} {
		sh := newShelf(t, 4)
		s, client, mine, theirs := farScript(t, sh.hold(t), withSACK...)
		s.say(segment{mine, theirs, psh, 64000, []byte("heard")})
		wantServer(t, client, "heard")
		var told []packet.Packet
		send := s.o.Send
		s.o.Send = func(ip []byte, vnet packet.VNetHdr) {
			var p packet.Packet
			if p.ParseIP(bytes.Clone(ip)) == packet.Good && p.Tuple.Proto != packet.TCP {
				told = append(told, p)
			}
			send(ip, vnet)
		}
		s.nextRelay(sh, func(netip.Addr) bool { return !far }, one)
		s.asked(theirs)
		if !far {
			if len(told) > 0 {
				t.Errorf("a pod of this node is told %v", told)
			}
			continue
		}
		var quoted packet.Packet
		if len(told) != 1 || told[0].ICMPType != 3 || told[0].IP[told[0].L4+1] != 0 || !told[0].Embedded(&quoted) {
			t.Fatalf("the pod is told %v, want an unreachable network", told)
		}
		if p := &told[0]; p.Tuple.Src != s.tuple.Dst || p.Tuple.Dst != s.tuple.Src {
			t.Errorf("the error goes from %s to %s", p.Tuple.Src, p.Tuple.Dst)
		}
		if seq := binary.BigEndian.Uint32(quoted.IP[quoted.L4+4:]); quoted.Tuple != s.tuple || seq != mine+5 {
			t.Errorf("it quotes %v at %d, want %v at 5", quoted.Tuple, seq-mine, s.tuple)
		}
	}
}

// The other node does not wait until all connections go on: what its pods say meanwhile arrives.
func TestFarSpeaksDuringResume(t *testing.T) {
	sh := newShelf(t, 4)
	s, client, mine, theirs := farScript(t, sh.hold(t), withSACK...)
	first := s.tuple
	_, accepted := dialHost(t, 0)
	go func() {
		_ = s.r.Join(context.Background(), accepted, netip.AddrPortFrom(seenAs[0].Addr(), 4001), netip.AddrPortFrom(podIPs[0], 80), nil)
	}()
	s.tuple.DstPort = 4001
	s.hear(syn)
	if err := s.r.Close(); err != nil {
		t.Fatal(err)
	}
	s.tuple = first
	var next *tcprelay.Relay
	said, asked := false, false
	s.o.Hold = sh.hold(t)
	s.o.Far = func(packet.Addr) (int, bool) {
		if !asked { // not even the first one is known
			asked = true
			s.say(segment{mine, theirs, psh, 64000, []byte("early")})
			s.say(segment{mine, theirs, syn, 64000, nil})
		}
		if !said && next.Carries(&first) {
			said = true
			s.say(segment{mine, theirs, psh, 64000, []byte("early")})
			for range 1000 {
				runtime.Gosched()
			}
		}
		return mtu, true
	}
	next = tcprelay.New(s.o)
	s.r = next
	if got := next.Resume(func(netip.Addr) bool { return false }); got.Resumed != 2 || !said {
		t.Fatalf("%+v; spoken: %v", got, said)
	}
	next.GoOn()
	wantServer(t, client, "early")
	first.SrcPort++
	s.tuple = first
	if s.delivers(segment{mine, theirs, psh, 64000, []byte("late")}) {
		t.Error("a connection is known that nobody began")
	}
}

// fill says more than the client's socket takes, and repeats it until the pod is told that there is no room. It returns
// what is acknowledged then, and what was said.
func (s *script) fill(mine, theirs uint32) (acked, said uint32) {
	s.t.Helper()
	b := make([]byte, 40_000)
	for said = mine; ; {
		if s.r.Stats().Bytes == 0 {
			said += uint32(len(b))
		}
		s.say(segment{said - uint32(len(b)), theirs, ack, 64000, b})
		s.turn.End()
		for runtime.Gosched(); len(s.heard) > 0; {
			if x := <-s.heard; x.of == s.tuple && x.flags == ack && x.window == 0 {
				return x.ack, said
			}
		}
	}
}

// A pod that gives up on a client who does not read resets at what it knows as acknowledged. That lies before what is
// kept here.
func TestResetOfFullConnection(t *testing.T) {
	for _, kind := range []string{"far", "near"} {
		t.Run(kind, func(t *testing.T) {
			var s *script
			var mine, theirs uint32
			if kind == "far" {
				s, _, mine, theirs = farScript(t, nil, withSACK...)
			} else {
				s = newScript(t)
				_, mine, theirs = s.egress(64000)
			}
			acked, said := s.fill(mine, theirs)
			t.Logf("%d bytes are kept", said-acked)
			s.say(segment{acked, theirs, rst | ack, 0, nil})
			await.Until(t, "the connection is over", func() bool { return s.r.Len() == 0 })
		})
	}
}

// A far pod may also speak to a client who does not read, before the relay watches the client's socket.
func TestFarSpeaksToFullClientDuringResume(t *testing.T) {
	sh := newShelf(t, 4)
	s, client, mine, theirs := farScript(t, sh.hold(t), withSACK...)
	first := s.tuple
	_, accepted := dialHost(t, 0)
	go func() {
		_ = s.r.Join(context.Background(), accepted, netip.AddrPortFrom(seenAs[0].Addr(), 4001), netip.AddrPortFrom(podIPs[0], 80), nil)
	}()
	s.tuple.DstPort = 4001
	s.hear(syn)
	s.tuple = first
	end, _ := s.fill(mine, theirs)
	if err := s.r.Close(); err != nil {
		t.Fatal(err)
	}
	var next *tcprelay.Relay
	s.o.Hold = sh.hold(t)
	s.o.Far = func(packet.Addr) (int, bool) {
		for next.Resuming() && next.Carries(&first) && next.Stats().Bytes == 0 {
			s.say(segment{end, theirs, ack, 64000, make([]byte, 40_000)})
			end += 40_000
		}
		return mtu, true
	}
	next = tcprelay.New(s.o)
	s.r = next
	if got := next.Resume(func(netip.Addr) bool { return false }); got.Resumed != 2 || next.Stats().Bytes == 0 {
		t.Fatalf("%+v; %d bytes are kept", got, next.Stats().Bytes)
	}
	next.GoOn()
	if _, err := io.CopyN(io.Discard, client, int64(end-mine)); err != nil {
		t.Error(err)
	}
	await.Until(t, "nothing is kept", func() bool { return next.Stats().Bytes == 0 })
}
