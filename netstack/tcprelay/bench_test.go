package tcprelay_test

import (
	"encoding/binary"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

func cpuNanos() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkToPod measures a stream from a host socket, of which the pod acknowledges each superframe.
func BenchmarkToPod(b *testing.B) {
	for _, size := range []int{100, 60000, -100, -60000} {
		b.Run(map[int]string{100: "small", 60000: "superframe", -100: "small-held", -60000: "superframe-held"}[size], func(b *testing.B) {
			var o tcprelay.Options
			if size < 0 { // the connection outlives its Relay
				size, o.Hold = -size, newShelf(b, 16).hold(b)
			}
			s := newScriptWith(b, o)
			server, mine, theirs := s.egress(65535)
			var p packet.Packet
			var turn tcprelay.Turn
			frame := make([]byte, packet.HeadLen+40, packet.MaxFrame)
			data := make([]byte, size)
			b.SetBytes(int64(size))
			began := cpuNanos()
			for b.Loop() {
				if _, err := server.Write(data); err != nil {
					b.Fatal(err)
				}
				for left := size; left > 0; {
					got := <-s.heard
					left -= len(got.payload)
					theirs += uint32(len(got.payload))
				}
				h := packet.TCPHeader{Seq: mine, Ack: theirs, Flags: packet.ACK, Window: 65535}
				packet.PutTCP(frame[packet.HeadLen:], &s.tuple, &h, 0, 0)
				if p.ParseIP(frame[packet.HeadLen:]) != packet.Good || !s.r.Deliver(&p, &turn, false) {
					b.Fatal("the connection is gone")
				}
				turn.End()
			}
			b.ReportMetric(float64(cpuNanos()-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkFromPod measures a stream of superframes to a host socket, in turns of four.
func BenchmarkFromPod(b *testing.B) {
	s := newScript(b)
	server, mine, theirs := s.egress(65535)
	go func() { _, _ = io.Copy(io.Discard, server) }()
	const size = 60000
	frame := make([]byte, packet.HeadLen+40+size, packet.MaxFrame)
	h := packet.TCPHeader{Seq: mine, Ack: theirs, Flags: packet.ACK, Window: 65535}
	packet.PutTCP(frame[packet.HeadLen:], &s.tuple, &h, size, 1380)
	var turn tcprelay.Turn
	var p packet.Packet
	buf := make([]byte, packet.MaxFrame)
	b.SetBytes(4 * size)
	began := cpuNanos()
	for b.Loop() {
		for range 4 {
			binary.BigEndian.PutUint32(frame[packet.HeadLen+24:], mine)
			mine += size
			buf = buf[:copy(buf[:cap(buf)], frame)]
			if p.ParseIP(buf[packet.HeadLen:]) != packet.Good {
				b.Fatal("malformed")
			}
			p.Buf = buf
			if !s.r.Deliver(&p, &turn, false) {
				b.Fatal("the connection is gone")
			}
			buf = p.Buf[:cap(p.Buf)]
		}
		turn.End()
		// All was taken, and there is room for more.
		for got := (arrival{}); got.ack != mine || int(got.window)<<8 < 4*size; {
			got = <-s.heard
		}
	}
	b.ReportMetric(float64(cpuNanos()-began)/float64(b.N), "cpu-ns/op")
}
