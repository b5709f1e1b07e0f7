package tcprelay_test

import (
	"encoding/binary"
	"io"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// A turn of superframes from a pod to a socket allocates nothing, and neither does its acknowledgement.
func TestTurnAllocatesNothing(t *testing.T) {
	s := newScript(t)
	server, mine, theirs := s.egress(65535)
	go func() { _, _ = io.Copy(io.Discard, server) }()
	const size = 30000
	frame := make([]byte, packet.HeadLen+40+size, packet.MaxFrame)
	h := packet.TCPHeader{Seq: mine, Ack: theirs, Flags: packet.ACK, Window: 65535}
	packet.PutTCP(frame[packet.HeadLen:], &s.tuple, &h, size, 1380)
	// Deliver exchanges the packet's buffer, so the frame is copied to a new buffer, with a new number, each time.
	var turn tcprelay.Turn
	var p packet.Packet
	buf := make([]byte, packet.MaxFrame)
	send := func() {
		for range 4 {
			binary.BigEndian.PutUint32(frame[packet.HeadLen+24:], mine)
			mine += size
			buf = buf[:copy(buf[:cap(buf)], frame)]
			if p.ParseIP(buf[packet.HeadLen:]) != packet.Good {
				t.Fatal("malformed")
			}
			p.Buf = buf
			if !s.r.Deliver(&p, &turn, false) {
				t.Fatal("the connection is gone")
			}
			buf = p.Buf[:cap(p.Buf)]
		}
		turn.End()
		for len(s.heard) > 0 {
			<-s.heard
		}
	}
	for range 20 {
		send() // pools and slices grow
	}
	// Under -race a sync.Pool drops some values on purpose.
	if n := testing.AllocsPerRun(50, send); n != 0 && !raceEnabled {
		t.Errorf("%v allocations for a turn of 4 superframes", n)
	}
}
