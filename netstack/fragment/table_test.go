package fragment

import (
	"math/rand/v2"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

func tuple(pod byte) *packet.Tuple {
	return &packet.Tuple{Src: packet.Addr{10: 0xff, 11: 0xff, 15: pod}, Dst: packet.Addr{10: 0xff, 11: 0xff, 15: 200}, Proto: packet.UDP}
}

func way(n uint64) Way { return Way{Via: n} }

// find is Table.Follow for a fragment that need not wait.
func find(t *Table, tuple *packet.Tuple, id uint32, owner uint64) (Way, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.find(keyOf(tuple, id, owner))
}

func TestFind(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New(Options{Max: 10, MaxWaiting: 10, Now: func() time.Time { return now }})
	first := tuple(1)
	first.SrcPort, first.DstPort = 1000, 53
	table.Remember(first, 7, 1, way(3))
	for name, c := range map[string]struct {
		t     func(*packet.Tuple)
		id    uint32
		after time.Duration
		found bool
	}{
		"its own":                {func(*packet.Tuple) {}, 7, 29 * time.Second, true},
		"too late":               {func(*packet.Tuple) {}, 7, 30 * time.Second, false},
		"of another datagram":    {func(*packet.Tuple) {}, 8, 0, false},
		"of another sender":      {func(t *packet.Tuple) { t.Src[15] = 2 }, 7, 0, false},
		"for another receiver":   {func(t *packet.Tuple) { t.Dst[15] = 2 }, 7, 0, false},
		"of another space":       {func(t *packet.Tuple) { t.Space = 2 }, 7, 0, false},
		"of another protocol":    {func(t *packet.Tuple) { t.Proto = packet.ICMPv4 }, 7, 0, false},
		"again, with other ones": {func(*packet.Tuple) {}, 7, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			defer func(was time.Time) { now = was }(now)
			now = now.Add(c.after)
			later := tuple(1)
			c.t(later)
			if w, ok := find(table, later, c.id, 1); ok != c.found || ok && w != way(3) {
				t.Errorf("found %v, %+v", ok, w)
			}
		})
	}
	// A client that came back sends the same datagram again: the new way counts, and it takes no more room.
	table.Remember(first, 7, 1, way(4))
	if w, _ := find(table, tuple(1), 7, 1); w != way(4) {
		t.Errorf("the way is %+v, want the newer one", w)
	}
	if n := table.share.Held(1); n != 1 {
		t.Errorf("one datagram holds %d units", n)
	}
}

// TestOneSendsMany: endless first fragments of one sender replace that sender's own datagrams, oldest first, and nobody
// else's.
func TestOneSendsMany(t *testing.T) {
	table := New(Options{Max: 100, MaxWaiting: 1})
	for id := range uint32(10) {
		table.Remember(tuple(1), id, 1, way(1))
	}
	for id := range uint32(1000) {
		table.Remember(tuple(2), id, 2, way(2))
	}
	for id := range uint32(10) {
		if _, ok := find(table, tuple(1), id, 1); !ok {
			t.Errorf("datagram %d of the modest sender is forgotten", id)
		}
	}
	for id, want := range map[uint32]bool{0: false, 909: false, 910: true, 999: true} {
		if _, ok := find(table, tuple(2), id, 2); ok != want {
			t.Errorf("datagram %d of the greedy sender is known: %v, want %v", id, ok, want)
		}
	}
	for id := range uint32(40) {
		table.Remember(tuple(3), id, 3, way(3))
		if _, ok := find(table, tuple(3), id, 3); !ok {
			t.Fatalf("there was no room for datagram %d of a third sender", id)
		}
	}
	if n := len(table.known); n != 100 {
		t.Errorf("%d datagrams are known, want 100", n)
	}
}

// TestRandom compares the Table with a map that forgets nothing: every way that is found is right, and the most recent
// way of each sender is found.
func TestRandom(t *testing.T) {
	table, r := New(Options{Max: 64, MaxWaiting: 1}), rand.New(rand.NewPCG(1, 2))
	all := map[key]Way{}
	for i := range uint64(20000) {
		pod, id := byte(r.IntN(8)), uint32(r.IntN(100))
		table.Remember(tuple(pod), id, uint64(pod), way(i))
		all[keyOf(tuple(pod), id, uint64(pod))] = way(i)
		if w, ok := find(table, tuple(pod), id, uint64(pod)); !ok || w != way(i) {
			t.Fatalf("step %d: the datagram just remembered is not there", i)
		}
		pod, id = byte(r.IntN(8)), uint32(r.IntN(100))
		if w, ok := find(table, tuple(pod), id, uint64(pod)); ok && w != all[keyOf(tuple(pod), id, uint64(pod))] {
			t.Fatalf("step %d: the way of datagram %d of %d is %v", i, id, pod, w)
		}
		if len(table.known) > 64 || len(table.known)+len(table.spare) > 65 {
			t.Fatalf("step %d: %d datagrams are known, %d spare", i, len(table.known), len(table.spare))
		}
	}
}
