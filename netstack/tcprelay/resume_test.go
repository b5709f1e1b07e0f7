package tcprelay

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/packet"
)

// Where streams are follows from the record and the kernel's counts, or is not known.
func TestResumePoint(t *testing.T) {
	const (
		est, closeWait, finWait2, closed, synSent = unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_FIN_WAIT2, unix.BPF_TCP_CLOSE, unix.BPF_TCP_SYN_SENT
	)
	const iss, irs = 1<<32 - 10, 1<<32 - 20 // numbers wrap
	at := func(n uint32) uint32 { return iss + 1 + n }
	for _, c := range []struct {
		name string
		r    record
		k    counts
		want point
		err  error
	}{
		{"nothing yet", record{low: at(0), high: at(0)}, counts{state: est}, point{most: at(0)}, nil},
		{"written and read", record{base: 1, low: at(30), high: at(30)}, counts{state: est, written: 51, received: 100, unread: 70},
			point{written: 50, consumed: 30, most: at(100)}, nil},
		{"killed while consuming, before", record{low: at(30), high: at(40)}, counts{state: est, received: 100, unread: 70}, point{consumed: 30, most: at(100)}, nil},
		{"killed while consuming, after", record{low: at(30), high: at(40)}, counts{state: est, received: 100, unread: 60}, point{consumed: 40, most: at(100)}, nil},
		{"consumed more than was meant", record{low: at(30), high: at(40)}, counts{state: est, received: 100, unread: 59}, point{}, errNumbers},
		{"the far end has ended", record{low: at(0), high: at(0)}, counts{state: closeWait, received: 11, unread: 10}, point{most: at(10)}, nil},
		{"and the pod may know", record{low: at(0), high: at(0), hasHost: true, hostEnd: at(10)}, counts{state: closeWait, received: 11, unread: 10}, point{most: at(11)}, nil},
		{"another end than was told", record{low: at(0), high: at(0), hasHost: true, hostEnd: at(9)}, counts{state: closeWait, received: 11, unread: 10}, point{}, errNumbers},
		{"the pod is about to end", record{low: at(0), high: at(0), hasPod: true, podEnd: irs + 1 + 5}, counts{state: est, written: 5}, point{written: 5, most: at(0)}, nil},
		{"the pod has ended", record{low: at(0), high: at(0), hasPod: true, podEnd: irs + 1 + 5}, counts{state: finWait2, written: 6}, point{written: 5, shut: true, most: at(0)}, nil},
		{"another end of the pod", record{low: at(0), high: at(0), hasPod: true, podEnd: irs + 1 + 5}, counts{state: finWait2, written: 8}, point{}, errNumbers},
		{"reset", record{low: at(5), high: at(5)}, counts{state: closed, received: 8, unread: 3}, point{consumed: 5, most: at(8)}, nil},
		{"closed after both ends", record{low: at(5), high: at(5)}, counts{state: closed, received: 9, unread: 3}, point{consumed: 5, most: at(8)}, nil},
		{"closed, and the end was told", record{low: at(5), high: at(5), hasHost: true, hostEnd: at(8)}, counts{state: closed, received: 9, unread: 3}, point{consumed: 5, most: at(9)}, nil},
		{"closed, killed while consuming one byte", record{low: at(5), high: at(6)}, counts{state: closed, received: 9, unread: 3}, point{}, errNumbers},
		{"closed, killed while consuming more", record{low: at(5), high: at(7)}, counts{state: closed, received: 13, unread: 6}, point{consumed: 7, most: at(13)}, nil},
		{"closed, killed while consuming, before", record{low: at(5), high: at(9)}, counts{state: closed, received: 13, unread: 7}, point{consumed: 5, most: at(12)}, nil},
		{"another socket", record{cookie: 7}, counts{state: est, cookie: 8}, point{}, errOther},
		{"not connected", record{low: at(0), high: at(0)}, counts{state: synSent}, point{}, errState},
	} {
		c.r.iss, c.r.irs = iss, irs
		got, err := resume(&c.r, &c.k)
		if err == nil && got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

// A record comes back as it was written.
func TestRecord(t *testing.T) {
	want := record{
		key:    packet.Tuple{Src: packet.Addr{1, 15: 2}, Dst: packet.Addr{3, 15: 4}, SrcPort: 5, DstPort: 65535, Proto: packet.TCP},
		joined: true, iss: 1<<32 - 1, cookie: 1<<64 - 1, base: 1,
		offer: offer{mss: 1380, scale: 14, scales: true}, irs: 1<<32 - 2, heard: true, open: true,
		low: 10, high: 1 << 31, podEnd: 1<<32 - 3, hasPod: true, hostEnd: 0, hasHost: true, deaf: true,
	}
	f := want.fixed()
	live := [memo.Live]uint64{offerWord(want.offer, want.irs, true), uint64(want.low)<<32 | uint64(want.high), known | uint64(want.podEnd), known, 1}
	if got := readRecord(&f, &live); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Whatever stands in the memory does no harm: it is refused, or what follows from it is in the bounds of the socket.
func FuzzResume(f *testing.F) {
	f.Add(uint64(1), uint64(2), uint64(3), uint64(known), uint64(known), uint64(1), uint8(1), uint32(5), uint32(6), uint32(7))
	f.Fuzz(func(t *testing.T, a, b, c, d, e, g uint64, state uint8, written, received, unread uint32) {
		live := [memo.Live]uint64{b, c, d, e, g}
		r := readRecord(&memo.Fixed{4: a, 6: g}, &live)
		k := counts{state: state % 13, written: written, received: received, unread: min(unread, received)}
		p, err := resume(&r, &k)
		if err != nil {
			return
		}
		if first := r.iss + 1 + p.consumed; first-r.low > r.high-r.low {
			t.Errorf("the socket's first byte is %d, not between %d and %d", first, r.low, r.high)
		}
		if n := p.most - (r.iss + 1 + p.consumed); n != k.unread && n != k.unread+1 {
			t.Errorf("the pod may know %d bytes, and %d are unread", n, k.unread)
		}
	})
}
