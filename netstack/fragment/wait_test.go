package fragment

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

// waiting returns how many fragments wait.
func (t *Table) waiting() int { return t.queue.Stats().Held }

// drain takes out all that waits for a first fragment.
func drain(t *Table, tuple *packet.Tuple, id uint32, owner uint64) (got []string) {
	buf := make([]byte, Longest)
	for {
		_, ip := t.Next(tuple, id, owner, buf)
		if ip == nil {
			return got
		}
		got = append(got, string(ip))
	}
}

func TestWaiting(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New(Options{Max: 10, MaxWaiting: 10, Now: func() time.Time { return now }})
	for _, data := range []string{"third", "second"} {
		if _, fate := table.Follow(tuple(1), 7, 1, []byte(data)); fate != Waiting {
			t.Fatalf("the fate of a fragment without a first is %d", fate)
		}
	}
	if got := drain(table, tuple(1), 7, 1); got != nil || table.waiting() != 2 {
		t.Fatalf("%q came out before there was a way, %d wait", got, table.waiting())
	}
	first := tuple(1)
	first.SrcPort, first.DstPort = 1000, 53
	for name, other := range map[string]func() bool{
		"another identification": func() bool { return table.Remember(first, 8, 1, way(3)) },
		"another sender":         func() bool { return table.Remember(tuple(2), 7, 1, way(3)) },
		"another owner":          func() bool { return table.Remember(first, 7, 2, way(3)) },
	} {
		if other() {
			t.Errorf("%s: fragments of another datagram wait for it", name)
		}
	}
	if !table.Remember(first, 7, 1, way(3)) {
		t.Error("Remember does not tell that fragments wait")
	}
	buf := make([]byte, Longest)
	for _, want := range []string{"second", "third"} {
		if w, ip := table.Next(first, 7, 1, buf); w != way(3) || string(ip) != want {
			t.Errorf("%q came with %+v, want %q", ip, w, want)
		}
	}
	if got := drain(table, first, 7, 1); got != nil || table.waiting() != 0 || len(table.wait) != 0 {
		t.Errorf("%q came again; %d wait", got, table.waiting())
	}
	if w, fate := table.Follow(tuple(1), 7, 1, []byte("fourth")); fate != Found || w != way(3) {
		t.Errorf("a fragment after the first got %+v, fate %d", w, fate)
	}
	if table.Remember(first, 7, 1, way(3)) {
		t.Error("Remember tells of fragments that went on already")
	}
	if n := table.Lost(); n != 0 {
		t.Errorf("%d are lost", n)
	}
}

// An IPv6 fragment may name another protocol than the first: the header that follows (RFC 8200 4.5).
func TestWaitingOfAnotherProtocol(t *testing.T) {
	first, later := tuple(1), tuple(1)
	first.Src, first.Proto = packet.Addr{0: 0xfd, 15: 1}, packet.UDP
	later.Src, later.Proto = first.Src, 60
	table := New(Options{Max: 10, MaxWaiting: 10})
	table.Follow(later, 7, 1, []byte("rest"))
	if !table.Remember(first, 7, 1, way(3)) {
		t.Error("the rest does not wait for its first fragment")
	}
	if _, fate := table.Follow(later, 7, 1, []byte("rest")); fate != Found {
		t.Errorf("the fate of the rest is %d", fate)
	}
}

func TestWaitsInVain(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New(Options{Max: 10, MaxWaiting: 10, Now: func() time.Time { return now }})
	if _, fate := table.Follow(tuple(1), 1, 1, make([]byte, Longest+1)); fate != Lost {
		t.Errorf("too long a fragment has the fate %d", fate)
	}
	if _, fate := table.Follow(tuple(1), 1, 1, make([]byte, Longest)); fate != Waiting {
		t.Errorf("the longest fragment has the fate %d", fate)
	}
	table.Follow(tuple(1), 2, 1, []byte("a"))
	table.Follow(tuple(1), 2, 1, []byte("b"))
	now = now.Add(patience - 1)
	table.Follow(tuple(1), 2, 1, []byte("c"))
	if n := table.Lost(); n != 0 {
		t.Errorf("%d are lost too early", n)
	}
	now = now.Add(1)
	table.Remember(tuple(1), 2, 1, way(1))
	if got := drain(table, tuple(1), 2, 1); len(got) != 1 || got[0] != "c" {
		t.Errorf("%q came, want c alone", got)
	}
	if n := table.Lost(); n != 3 || table.waiting() != 0 || len(table.wait) != 0 {
		t.Errorf("%d are lost, %d wait; want 3 and 0", n, table.waiting())
	}
}

// TestOneSendsManyWithoutFirst: fragments without a first and without end, of one datagram or of many, cost their own
// sender's, oldest first, and nobody else's.
func TestOneSendsManyWithoutFirst(t *testing.T) {
	for _, datagrams := range []uint32{1, 1000} {
		table := New(Options{Max: 100, MaxWaiting: 100})
		for n := range 10 {
			table.Follow(tuple(1), 7, 1, []byte(fmt.Sprint(n)))
		}
		for n := range uint32(1000) {
			if _, fate := table.Follow(tuple(2), n%datagrams, 2, []byte(fmt.Sprint(n))); fate != Waiting {
				t.Fatalf("fragment %d has the fate %d", n, fate)
			}
		}
		for n := range 40 {
			if _, fate := table.Follow(tuple(3), 7, 3, []byte(fmt.Sprint(n))); fate != Waiting {
				t.Fatalf("there was no room for fragment %d of a third sender", n)
			}
		}
		if table.waiting() != 100 || table.Lost() != 950 {
			t.Errorf("%d wait, %d are lost; want 100 and 950", table.waiting(), table.Lost())
		}
		for owner, want := range map[uint64]int{1: 10, 3: 40} {
			table.Remember(tuple(byte(owner)), 7, owner, way(1))
			if got := drain(table, tuple(byte(owner)), 7, owner); len(got) != want {
				t.Errorf("%d of %d fragments of sender %d came: %q", len(got), want, owner, got)
			}
		}
		for n := range datagrams {
			table.Remember(tuple(2), n, 2, way(2))
			for _, got := range drain(table, tuple(2), n, 2) {
				if len(got) < 3 || got < "950" {
					t.Errorf("fragment %s of the greedy sender waited, and newer ones did not", got)
				}
			}
		}
	}
}

// TestWaitingRandom holds what waits against lists that forget nothing: what comes out was put in for that datagram,
// once, and counts of what came, waits and is lost add up.
func TestWaitingRandom(t *testing.T) {
	now := time.Unix(1000, 0)
	table, r := New(Options{Max: 4096, MaxWaiting: 64, Now: func() time.Time { return now }}), rand.New(rand.NewPCG(1, 2))
	all, buf := map[key]map[string]bool{}, make([]byte, Longest)
	var put, got uint64
	for i := range 30000 {
		pod, id := byte(r.IntN(6)), uint32(i/200*10+r.IntN(10))
		k := keyOf(tuple(pod), id, uint64(pod))
		if r.IntN(8) > 0 {
			data := fmt.Sprintf("%d %s", i, bytes.Repeat([]byte{'x'}, r.IntN(3000)))
			if _, fate := table.Follow(tuple(pod), id, uint64(pod), []byte(data)); fate == Waiting {
				put++
				if all[k] == nil {
					all[k] = map[string]bool{}
				}
				all[k][data] = true
			} else if fate == Lost {
				t.Fatalf("step %d: there was no room", i)
			}
			now = now.Add(time.Duration(r.IntN(100)) * time.Millisecond)
			continue
		}
		waits := table.wait[k] != nil
		if table.Remember(tuple(pod), id, uint64(pod), way(uint64(pod))) != waits {
			t.Fatalf("step %d: Remember says that fragments wait: %v", i, !waits)
		}
		for {
			w, ip := table.Next(tuple(pod), id, uint64(pod), buf)
			if ip == nil {
				break
			}
			if got++; w != way(uint64(pod)) || !all[k][string(ip)] {
				t.Fatalf("step %d: %.10q came with %+v", i, ip, w)
			}
			delete(all[k], string(ip))
		}
		if n := table.waiting(); n > 64 || n+len(table.unused) > 65 || table.Lost()+got+uint64(table.waiting()) != put {
			t.Fatalf("step %d: %d wait, %d unused; %d came, %d were lost, of %d", i, n, len(table.unused), got, table.Lost(), put)
		}
	}
	if got < 1000 || table.Lost() < 1000 {
		t.Errorf("%d came, %d were lost: the test tests little", got, table.Lost())
	}
}

func TestAllocatesNothing(t *testing.T) {
	table, id, buf, ip := New(Options{Max: 64, MaxWaiting: 64}), uint32(0), make([]byte, Longest), make([]byte, 1400)
	step := func() {
		id++
		owner := id % 4
		table.Follow(tuple(byte(owner)), id, uint64(owner), ip)
		table.Follow(tuple(byte(owner)), id+1<<20, uint64(owner), ip)
		table.Remember(tuple(byte(owner)), id, uint64(owner), way(1))
		table.Next(tuple(byte(owner)), id, uint64(owner), buf)
		table.Follow(tuple(byte(owner)), id, uint64(owner), ip)
	}
	for range 1000 {
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations per datagram", n)
	}
}
