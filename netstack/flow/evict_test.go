package flow

import (
	"fmt"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// firstOwner is the first owner without a reserve in the tests.
const firstOwner = 16

// flood makes flows of one owner, all different.
type flood struct {
	owner  uint64
	client packet.Addr
	n      int
}

func (f *flood) next(proto packet.Proto) Entry {
	f.n++
	o := packet.Tuple{Proto: proto, Src: f.client, SrcPort: uint16(f.n), Dst: packet.Addr{0: 0xfd, 14: byte(f.n >> 24), 15: byte(f.n >> 16)}, DstPort: 7}
	return Entry{Orig: o, Reply: o.Reverse(), Owner: f.owner, Segment: tcp(packet.SYN)}
}

// echoed inserts a UDP flow that is answered.
func (f *flood) echoed(t testing.TB, table *Table) {
	e := f.next(packet.UDP)
	mustInsert(t, table, &e)
	var hit Hit
	if !table.Lookup(&e.Reply, tcp(0), &hit) || hit.State != Replied {
		t.Fatalf("owner %d: its own flow is not found, or %v", f.owner, hit.State)
	}
}

// connected inserts a connection.
func (f *flood) connected(t testing.TB, table *Table) Entry {
	e := f.next(packet.TCP)
	mustInsert(t, table, &e)
	var hit Hit
	table.Lookup(&e.Reply, tcp(packet.SYN|packet.ACK), &hit)
	if !table.Lookup(&e.Orig, tcp(packet.ACK), &hit) || hit.State != Established {
		t.Fatalf("owner %d: its own connection is not found, or %v", f.owner, hit.State)
	}
	return e
}

// TestEchoFlood: owners whose flows are all answered, and who try to fill the whole table, cost others nothing: neither
// flows that those have nor flows that they begin. Before flows had owners, no answered flow gave way, and others got
// no room.
func TestEchoFlood(t *testing.T) {
	const capacity = 2048
	for _, floods := range []int{1, 2, 10} {
		t.Run(fmt.Sprint(floods), func(t *testing.T) {
			table, _, _ := newTable(t, capacity)
			var greedy []*flood
			for i := range floods {
				greedy = append(greedy, &flood{owner: firstOwner + uint64(i), client: packet.Addr{15: byte(i + 1)}})
			}
			modest := &flood{owner: 1000, client: packet.Addr{14: 1}}
			var kept []Entry
			for range 50 {
				kept = append(kept, modest.connected(t, table))
			}
			for range capacity/floods + 100 {
				for _, f := range greedy {
					f.echoed(t, table)
				}
			}
			if s := table.Stats(); s.Len != capacity || s.Owners != floods+1 || s.Full != 0 {
				t.Fatalf("the table is not full: %+v", s)
			}
			for range 50 {
				kept = append(kept, modest.connected(t, table))
				greedy[0].echoed(t, table)
			}
			for range capacity {
				greedy[0].echoed(t, table)
			}
			var hit Hit
			for i := range kept {
				if !table.Peek(&kept[i].Orig, &hit) || hit.State != Established {
					t.Fatalf("connection %d of the modest owner is gone", i)
				}
			}
			s := table.Stats()
			if s.Evicted.FromMost == 0 || s.Evicted.FromOwn == 0 || s.Evicted.Crowded != 0 || s.Evicted.Pressed != 0 || s.Full != 0 {
				t.Errorf("stats %+v", s)
			}
			for i, f := range greedy {
				if n := table.owned.Charged(f.owner); n < (capacity-100)/floods-1 {
					t.Errorf("greedy owner %d has %d flows", i, n)
				}
			}
		})
	}
}

// TestOwnConnectionsStay: an owner who floods loses flows of the flood before its connections.
func TestOwnConnectionsStay(t *testing.T) {
	const capacity = 2048
	table, clock, _ := newTable(t, capacity)
	f := &flood{owner: firstOwner, client: packet.Addr{15: 1}}
	var kept []Entry
	for range 1000 {
		kept = append(kept, f.connected(t, table))
	}
	for range 5 * capacity {
		e := f.next(packet.UDP)
		mustInsert(t, table, &e)
	}
	clock.now += 5
	table.Sweep()
	for range 5 * capacity {
		e := f.next(packet.UDP)
		mustInsert(t, table, &e)
	}
	lost := 0
	var hit Hit
	for i := range kept {
		if !table.Peek(&kept[i].Orig, &hit) {
			lost++
		}
	}
	t.Logf("%d of 1000 connections were lost to 20,480 datagrams of their own pod", lost)
	if lost > 10 {
		t.Errorf("%d of 1000 connections were lost", lost)
	}
}

// TestReserve: the node gets its reserve even if there are more owners than fair shares.
func TestReserve(t *testing.T) {
	const capacity = 4096
	table, _, _ := newTable(t, capacity)
	for i := range 400 {
		f := &flood{owner: firstOwner + uint64(i), client: packet.Addr{14: byte(i >> 8), 15: byte(i)}}
		for range 30 {
			f.echoed(t, table)
		}
	}
	for _, owner := range []uint64{OwnerNode, OwnerOutside} {
		f := &flood{owner: owner, client: packet.Addr{13: byte(owner)}}
		for range capacity {
			f.connected(t, table)
		}
		held := table.owned.Charged(owner) + capacity/reservePart
		if fair := capacity / 400; held < capacity/reservePart+fair-1 || held > capacity/reservePart+fair+1 {
			t.Errorf("owner %d has %d flows, want its reserve of %d and a share of %d", owner, held, capacity/reservePart, fair)
		}
	}
}

// TestClients: of the clients of one owner, the one with the most flows loses.
func TestClients(t *testing.T) {
	const capacity = 2048
	table, _, _ := newTable(t, capacity)
	var kept []Entry
	for i := range 125 {
		f := &flood{owner: OwnerOutside, client: packet.Addr{10: 0xff, 11: 0xff, 12: 203, 15: byte(i)}}
		for range 4 {
			kept = append(kept, f.connected(t, table))
		}
	}
	// A whole /64 is one client.
	greedy := &flood{owner: OwnerOutside, client: packet.Addr{0: 0x20, 1: 0x01, 7: 1}}
	for i := range 4 * capacity {
		greedy.client[15], greedy.client[14] = byte(i), byte(i>>8)
		greedy.connected(t, table)
	}
	lost := 0
	var hit Hit
	for i := range kept {
		if !table.Peek(&kept[i].Orig, &hit) {
			lost++
		}
	}
	t.Logf("%d of 500 connections of 125 clients were lost to 8,192 of one", lost)
	if lost > 5 {
		t.Errorf("%d of 500 connections of clients with four each were lost to a client with thousands", lost)
	}
}

// TestOwnersSurvive: the next process charges flows to the same owners, and evicts flows of the one who has the most.
func TestOwnersSurvive(t *testing.T) {
	const capacity = 1000
	table, clock, mem := newTable(t, capacity)
	few, many := &flood{owner: 100, client: packet.Addr{15: 1}}, &flood{owner: 200, client: packet.Addr{15: 2}}
	for range 10 {
		few.connected(t, table)
	}
	for range capacity {
		many.echoed(t, table)
	}
	again, err := Open(mem, Options{Clock: clock.read})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		few.connected(t, again)
	}
	s := again.Stats()
	if s.Owners != 2 || s.Most != capacity-20 || s.Evicted != (Evicted{FromMost: 10}) || again.owned.Charged(100) != 20 {
		t.Errorf("stats %+v", s)
	}
}

// TestCount: bytes and packets of both directions are counted from the first packet on, also in the next process.
func TestCount(t *testing.T) {
	table, clock, mem := newTable(t, 10)
	e := *direct(tuple(packet.UDP, "10.0.0.1:1000", "10.0.0.2:80"))
	e.Counts[Original] = Count{100, 1}
	mustInsert(t, table, &e)
	var hit Hit
	for range 3 {
		table.Lookup(&e.Reply, tcp(0), &hit)
		table.Count(&hit, 1000, packet.Segment{})
	}
	table.Lookup(&e.Orig, tcp(0), &hit)
	const many = 100_000 // more packets and bytes than a slot can count
	for range many {
		table.Count(&hit, 65535, packet.Segment{})
	}
	table.Count(&Hit{Ref: maxSlots - 1}, 7, packet.Segment{}) // a ref of no slot
	want := [2]Count{{100 + many*65535, 1 + many}, {3000, 3}}
	check := func(table *Table) {
		t.Helper()
		shown := 0
		table.Range(func(e *Entry, _ Info) bool {
			shown++
			if e.Counts != want {
				t.Errorf("got %+v, want %+v", e.Counts, want)
			}
			return true
		})
		if shown != 1 {
			t.Errorf("%d flows", shown)
		}
	}
	check(table)
	again, err := Open(mem, Options{Clock: clock.read})
	if err != nil {
		t.Fatal(err)
	}
	check(again)
	// The next flow in the slot begins with zero.
	again.Lookup(&e.Orig, tcp(0), &hit)
	again.Delete(hit.Ref, &e.Orig)
	e.Counts[Original] = Count{50, 1}
	mustInsert(t, again, &e)
	want = [2]Count{{50, 1}, {}}
	check(again)
}

// BenchmarkInsertFull inserts into a full table, where each flow replaces another.
func BenchmarkInsertFull(b *testing.B) {
	table := benchTable(b, 0, 1<<18)
	f := &flood{owner: firstOwner, client: packet.Addr{15: 1}}
	for range 1 << 18 {
		f.echoed(b, table)
	}
	b.ReportAllocs()
	for b.Loop() {
		e := f.next(packet.UDP)
		if _, res := table.Insert(&e); res != Inserted {
			b.Fatal(res)
		}
	}
}
