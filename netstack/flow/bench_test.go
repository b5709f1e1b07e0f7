package flow

import (
	"fmt"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

func TestAllocs(t *testing.T) {
	table, clock, _ := newTable(t, 1000)
	e := churnEntry(1)
	r := mustInsert(t, table, &e)
	miss := churnEntry(2)
	var hit Hit
	n := uint64(10)
	for name, f := range map[string]func(){
		"hit":     func() { clock.now++; table.Lookup(&e.Orig, 0, &hit); table.Lookup(&e.Reply, 0, &hit) },
		"miss":    func() { table.Lookup(&miss.Orig, 0, &hit) },
		"checked": func() { table.SetChecked(r, 3) },
		"new": func() {
			n++
			e := churnEntry(n)
			r, _ := table.Insert(&e)
			table.Delete(r, &e.Orig)
		},
		"clash": func() {
			n++
			e := churnEntry(1)
			e.Orig.Zone = 55
			r, _ := table.Insert(&e)
			table.Delete(r, &e.Orig)
		},
		"sweep": func() { table.Sweep() },
	} {
		if a := testing.AllocsPerRun(100, f); a != 0 {
			t.Errorf("%s: %v allocations", name, a)
		}
	}
}

func TestSizes(t *testing.T) {
	const capacity = 100000
	index := indexLen(capacity) * 64
	if perFlow := float64(Size(capacity)-headerSize+index) / capacity; perFlow > 160 {
		t.Errorf("%.1f bytes per flow", perFlow)
	}
}

// TestFill fills a table to the last slot: the index must not give out first.
func TestFill(t *testing.T) {
	for _, capacity := range []int{1, 2, 7, 100, 5000, 30000} {
		table, _, _ := newTable(t, capacity)
		for n := range capacity {
			e := benchEntry(n)
			mustInsert(t, table, &e)
		}
		if s := table.Stats(); s.Len != capacity || s.Evicted != 0 {
			t.Errorf("capacity %d: %+v", capacity, s)
		}
		var hit Hit
		for n := range capacity {
			if e := benchEntry(n); !table.Peek(&e.Orig, &hit) || !table.Peek(&e.Reply, &hit) {
				t.Fatalf("capacity %d: flow %d is not found", capacity, n)
			}
		}
	}
}

// benchEntry is a flow from a pod to a Service, translated.
func benchEntry(n int) Entry {
	tp := packet.Tuple{Proto: packet.TCP, SrcPort: uint16(n>>8 | 1<<15), DstPort: 80}
	tp.Src = packet.Addr{10: 0xff, 11: 0xff, 12: 10, 14: byte(n >> 20), 15: byte(n)}
	tp.Dst = packet.Addr{10: 0xff, 11: 0xff, 12: 10, 13: 96, 15: 1}
	e := Entry{Orig: tp, Reply: tp.Reverse(), Backend: uint64(n), TCPFlags: packet.ACK}
	e.Reply.Src[13], e.Reply.SrcPort = 1, 8080
	return e
}

// benchTable is n established flows in shared memory.
func benchTable(b *testing.B, n, capacity int) *Table {
	b.Helper()
	mem, err := unix.Mmap(-1, 0, Size(capacity), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(mem) })
	table, err := Open(mem, Options{Capacity: capacity})
	if err != nil {
		b.Fatal(err)
	}
	var hit Hit
	for i := range n {
		e := benchEntry(i)
		mustInsert(b, table, &e)
		table.Lookup(&e.Reply, packet.ACK, &hit)
	}
	return table
}

func BenchmarkHit(b *testing.B) {
	for _, flows := range []int{16, 10_000, 1_000_000} {
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			table := benchTable(b, flows, flows)
			tuples := make([]packet.Tuple, min(flows, 1<<16))
			for i := range tuples {
				e := benchEntry(int(uint64(i) * 2654435761 % uint64(flows)))
				tuples[i] = [2]packet.Tuple{e.Orig, e.Reply}[i&1]
			}
			var hit Hit
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if !table.Lookup(&tuples[i], packet.ACK, &hit) {
					b.Fatal("miss")
				}
				if i++; i == len(tuples) {
					i = 0
				}
			}
		})
	}
}

func BenchmarkMiss(b *testing.B) {
	table := benchTable(b, 10_000, 10_000)
	e := benchEntry(10_001)
	var hit Hit
	b.ReportAllocs()
	for b.Loop() {
		e.Orig.DstPort++
		if e.Orig.DstPort != 80 && table.Lookup(&e.Orig, packet.ACK, &hit) {
			b.Fatal("hit")
		}
	}
}

func BenchmarkParallelHit(b *testing.B) {
	table := benchTable(b, 1000, 1000)
	var g atomic.Int32
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var hit Hit
		e := benchEntry(int(g.Add(1)))
		for pb.Next() {
			if !table.Lookup(&e.Orig, packet.ACK, &hit) {
				b.Fail()
			}
		}
	})
}

func BenchmarkInsertDelete(b *testing.B) {
	table := benchTable(b, 50_000, 100_000)
	n := 50_000
	b.ReportAllocs()
	for b.Loop() {
		n++
		e := benchEntry(n)
		r, res := table.Insert(&e)
		if res != Inserted || !table.Delete(r, &e.Orig) {
			b.Fatal(res)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	table := benchTable(b, 100_000, 100_000)
	mem := table.mem()
	for b.Loop() {
		again, err := Open(mem, Options{})
		if err != nil || again.Stats().Kept != 100_000 {
			b.Fatal(err, again.Stats())
		}
	}
}

// mem gives back the memory that Open was given.
func (t *Table) mem() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(t.head)), Size(len(t.slots)))
}
