package overlay

import (
	"sync"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// sized returns an entry of n bytes from a pod to a peer, with a number that identifies it.
func sized(from int, to *peer, n, number int) *entry {
	e := &entry{peer: to, buf: make([]byte, packet.MaxFrame)}
	e.pkt.Tuple.Src = packet.AddrFrom(pod4(1, from))
	e.pkt.Tuple.SrcPort = uint16(number)
	e.pkt.IP = e.buf[:n]
	return e
}

func never() bool { return false }

// pop takes one entry, which must be queued, and releases its buffer.
func pop(t *testing.T, r *ring) entry {
	t.Helper()
	var e entry
	if is, _ := r.next(&e, new(echo), false, never); !is {
		t.Fatal("nothing is queued")
	}
	r.release(e.buf)
	return e
}

// A packet waits for at most one superframe of each other lane, that of another peer or another pod, however many
// superframes that lane holds.
func TestRingNobodyWaitsBehindAFlood(t *testing.T) {
	a, b := &peer{id: 1}, &peer{id: 2}
	for _, tc := range []struct {
		name string
		late *entry
	}{
		{"other pod", sized(6, a, 100, 0)},
		{"other peer", sized(5, b, 100, 0)},
	} {
		r := newRing(nil)
		for i := range 20 {
			r.exchange(sized(5, a, 60000, i))
		}
		pop(t, r)
		r.exchange(tc.late)
		waited := 0
		for e := pop(t, r); len(e.pkt.IP) != 100; e = pop(t, r) {
			if waited++; waited > 1 {
				t.Errorf("%s: it waits behind %d superframes", tc.name, waited)
				break
			}
		}
	}
}

// Two lanes that are never empty send the same number of bytes, whatever the size of their packets.
func TestRingIsFairInBytes(t *testing.T) {
	to := &peer{id: 1}
	for _, sizes := range [][2]int{{60000, 1400}, {65535, 65535}, {100, 64000}, {1400, 1400}} {
		r := newRing(nil)
		var bytes [2]int
		for i := range sizes {
			for range 8 {
				r.exchange(sized(i, to, sizes[i], 0))
			}
		}
		for bytes[0]+bytes[1] < 4<<20 {
			e := pop(t, r)
			i := 0
			if e.pkt.Tuple.Src == packet.AddrFrom(pod4(1, 1)) {
				i = 1
			}
			bytes[i] += sizes[i]
			r.exchange(sized(i, to, sizes[i], 0))
		}
		if d := bytes[0] - bytes[1]; d > 2*quantum || d < -2*quantum {
			t.Errorf("packets of %d bytes: %d and %d bytes were served", sizes, bytes[0], bytes[1])
		}
	}
}

// A sender alone gets most of the ring. However many senders have filled it, the next free buffer goes to a sender that
// has none.
func TestRingShares(t *testing.T) {
	r := newRing(nil)
	to := &peer{id: 1}
	fill := func(from int) (l *lane, n int) {
		for l = r.lane(to, packet.AddrFrom(pod4(1, from))); r.hasRoom(l); n++ {
			r.exchange(sized(from, to, 1000, n))
		}
		return l, n
	}
	greedy, n := fill(0)
	if n < ringSize/2 || n == ringSize {
		t.Errorf("a sender alone gets %d of %d buffers", n, ringSize)
	}
	second, n := fill(1)
	if n == 0 {
		t.Error("there is no room beside one that takes all it gets")
	}
	for from := 2; r.nfree > 0; from++ {
		fill(from)
	}
	next := r.lane(to, packet.AddrFrom(pod4(1, 99)))
	pop(t, r)
	if !r.hasRoom(next) || r.hasRoom(greedy) || r.hasRoom(second) {
		t.Errorf("the buffer that became free: for the next one %v, for the first %v, for the second %v",
			r.hasRoom(next), r.hasRoom(greedy), r.hasRoom(second))
	}
}

// All waiting senders are woken, no packet is lost or overtakes another one of its lane, and in the end the ring is as
// at its beginning.
func TestRingManySenders(t *testing.T) {
	const senders, each = 12, 400
	r := newRing(nil)
	peers := []*peer{{id: 1}, {id: 2}, {id: 3}}
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			e := sized(s/2, peers[s%len(peers)], 1000, 0) // two senders share a pod, and have different peers
			for i := range each {
				e.pkt.Tuple.SrcPort, e.pkt.Tuple.DstPort = uint16(s), uint16(i)
				if i%3 == 0 {
					b, l := r.take(e.peer, e.pkt.Tuple.Src)
					other := *e
					other.buf = b
					r.put(l, &other)
					continue
				}
				e.buf = r.exchange(e)
			}
		})
	}
	var next [senders]uint16
	for range senders * each {
		var e entry
		if is, _ := r.next(&e, new(echo), true, never); !is {
			t.Fatal("the ring ended")
		}
		if s := e.pkt.Tuple.SrcPort; e.pkt.Tuple.DstPort != next[s] {
			t.Fatalf("sender %d: packet %d came, want %d", s, e.pkt.Tuple.DstPort, next[s])
		} else {
			next[s]++
		}
		r.release(e.buf)
	}
	sending.Wait()
	if r.nfree != ringSize || r.nunused != ringSize || r.queued != 0 || len(r.lanes) != 0 {
		t.Errorf("%d buffers and %d slots are free, %d lanes with %d entries are left", r.nfree, r.nunused, len(r.lanes), r.queued)
	}
}
