package udprelay

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// sink counts what a relay sends to pods, and drops it.
type sink struct {
	bytes atomic.Int64
	more  chan struct{}
}

// wait waits until n bytes of data have come.
func (s *sink) wait(n int64) {
	for s.bytes.Load() < n {
		<-s.more
	}
}

func benched(b *testing.B) (r *Relay, s *sink) {
	b.Helper()
	poller, err := poll.New(1)
	if err != nil {
		b.Fatal(err)
	}
	s = &sink{more: make(chan struct{}, 1)}
	r = New(Options{
		Poller: poller, MTU: func() int { return podMTU }, Idle: time.Minute, Refuse: func(*packet.Packet, packet.ICMPError, packet.Addr) {},
		Send: func(ip []byte, _ packet.VNetHdr) {
			s.bytes.Add(int64(len(ip) - 28))
			select {
			case s.more <- struct{}{}:
			default:
			}
		},
	})
	b.Cleanup(func() {
		r.Close()
		_ = poller.Close()
	})
	return r, s
}

// cpuTime returns the processor time that the process has used. On a machine with other work it says more than elapsed
// time.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var benchSizes = []struct {
	name   string
	n, gso int // bytes of data in all, and in each datagram of a superframe
}{{"small", 100, 0}, {"datagram", 1372, 0}, {"superframe", 40 * 1372, 1372}}

func BenchmarkSend(b *testing.B) {
	for _, s := range benchSizes {
		b.Run(s.name, func(b *testing.B) {
			r, _ := benched(b)
			out := server(b, families[0].outside) // its buffer is soon full
			p := from(b, netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out), Payload: pattern(s.n, 1)}, s.gso)
			b.SetBytes(int64(s.n))
			began := cpuTime()
			for b.Loop() {
				if _, err := r.Send(p); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, s := range benchSizes {
		b.Run(s.name, func(b *testing.B) {
			r, got := benched(b)
			out := server(b, families[0].outside)
			p := from(b, netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out), Payload: pattern(1, 1)}, 0)
			if _, err := r.Send(p); err != nil {
				b.Fatal(err)
			}
			_, client := hear(b, out)
			raw, err := out.SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, s.gso) })
			if err != nil {
				b.Fatal(err)
			}
			data, want := pattern(s.n, 2), int64(0)
			const several = 2 // sent at a time, so that none is lost
			b.SetBytes(int64(several * s.n))
			began := cpuTime()
			for b.Loop() {
				for range several {
					if _, err := out.WriteToUDPAddrPort(data, client); err != nil {
						b.Fatal(err)
					}
				}
				want += int64(several * s.n)
				got.wait(want)
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkOpen measures the first datagram to an address and port.
func BenchmarkOpen(b *testing.B) {
	r, _ := benched(b)
	out := server(b, families[0].outside)
	p := from(b, netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out), Payload: pattern(1, 1)}, 0)
	for i := 0; b.Loop(); i++ {
		p.Tuple.DstPort = uint16(i%20000 + 1)
		p.Tuple.SrcPort = uint16(i / 20000)
		if _, err := r.Send(p); err != nil {
			b.Fatal(err)
		}
	}
}
