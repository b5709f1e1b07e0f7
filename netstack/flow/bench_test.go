package flow

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
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
	batch := []packet.Packet{{Tuple: e.Orig}, {Tuple: miss.Orig}}
	var hit Hit
	n := uint64(10)
	for name, f := range map[string]func(){
		"hit":     func() { clock.now++; table.Lookup(&e.Orig, tcp(0), &hit); table.Lookup(&e.Reply, tcp(0), &hit) },
		"miss":    func() { table.Lookup(&miss.Orig, tcp(0), &hit) },
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
			e.Orig.Space = 55
			r, _ := table.Insert(&e)
			table.Delete(r, &e.Orig)
		},
		"count": func() { table.Count(&hit, 1500, packet.Segment{}) },
		"sweep": func() { table.Sweep() },
		"fetch": func() { table.prefetch(batch) },
	} {
		if a := testing.AllocsPerRun(100, f); a != 0 {
			t.Errorf("%s: %v allocations", name, a)
		}
	}
}

func TestSizes(t *testing.T) {
	if a, b := unsafe.Sizeof(slot{}), unsafe.Sizeof(ledger{}); a != slotSize || b != ledgerSize || unsafe.Sizeof(slotV1{}) != 128 ||
		unsafe.Sizeof(slotV2{}) != 128 || unsafe.Sizeof(ledgerV2{}) != 64 {
		t.Errorf("a slot has %d bytes and a ledger %d", a, b)
	}
	const capacity = 100000
	index := indexLen(capacity) * int(unsafe.Sizeof(bucket{}))
	if perFlow := float64(Size(capacity)-headerSize+index) / capacity; perFlow > 208.1 {
		t.Errorf("%.1f bytes per flow", perFlow)
	}
}

// TestFill fills a table to the last slot: the index must not run out of room first.
func TestFill(t *testing.T) {
	for _, capacity := range []int{1, 2, 7, 100, 5000, 30000} {
		table, _, _ := newTable(t, capacity)
		for n := range capacity {
			e := benchEntry(n)
			mustInsert(t, table, &e)
		}
		if s := table.Stats(); s.Len != capacity || s.Evicted != (Evicted{}) {
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

// benchEntry returns a flow from a pod to a Service, translated.
func benchEntry(n int) Entry {
	tp := packet.Tuple{Proto: packet.TCP, SrcPort: uint16(n>>8 | 1<<15), DstPort: 80}
	tp.Src = packet.Addr{10: 0xff, 11: 0xff, 12: 10, 14: byte(n >> 20), 15: byte(n)}
	tp.Dst = packet.Addr{10: 0xff, 11: 0xff, 12: 10, 13: 96, 15: 1}
	e := Entry{Orig: tp, Reply: tp.Reverse(), Backend: uint64(n), Segment: tcp(packet.ACK)}
	e.Reply.Src[13], e.Reply.SrcPort = 1, 8080
	return e
}

// benchTable returns a table with n established flows in shared memory.
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
		table.Lookup(&e.Reply, tcp(packet.ACK), &hit)
	}
	return table
}

// traffic yields packets of benchTable's flows in random order and direction. It computes them, since a list of tuples
// would itself fill the caches.
type traffic struct {
	x     uint64
	flows uint64
	tuple packet.Tuple
}

func newTraffic(flows int, seed uint64) *traffic {
	e := benchEntry(0)
	return &traffic{x: seed, flows: uint64(flows), tuple: e.Orig}
}

// next returns the next packet's tuple, borrowed until the next call. It has no branch that could be mispredicted.
func (g *traffic) next() *packet.Tuple {
	g.x = g.x*6364136223846793005 + 1442695040888963407
	n, _ := bits.Mul64(g.x, g.flows)
	reply := g.x >> 20 & 1
	client := uint64(10)<<32 | 0xffff<<16 | n>>20<<48 | n&0xff<<56 // benchEntry's client, in memory order
	server := [2]uint64{10<<32 | 0xffff<<16 | 96<<40 | 1<<56, 10<<32 | 0xffff<<16 | 1<<40 | 1<<56}[reply]
	ends := [2]uint64{client, server}
	ports := [2]uint16{uint16(n>>8 | 1<<15), [2]uint16{80, 8080}[reply]}
	binary.LittleEndian.PutUint64(g.tuple.Src[8:], ends[reply])
	binary.LittleEndian.PutUint64(g.tuple.Dst[8:], ends[1^reply])
	g.tuple.SrcPort, g.tuple.DstPort = ports[reply], ports[1^reply]
	return &g.tuple
}

// TestTraffic: the packets that the benchmarks look up belong to the flows that the benchmarks inserted.
func TestTraffic(t *testing.T) {
	const flows = 3000
	known := map[packet.Tuple]bool{}
	for n := range flows {
		e := benchEntry(n)
		known[e.Orig], known[e.Reply] = true, true
	}
	g, seen := newTraffic(flows, 1), map[packet.Tuple]bool{}
	for range 20 * flows {
		tp := *g.next()
		if !known[tp] {
			t.Fatalf("%v belongs to no flow", tp)
		}
		seen[tp] = true
	}
	if len(seen) < 2*flows*99/100 {
		t.Errorf("%d of %d tuples occurred", len(seen), 2*flows)
	}
}

// BenchmarkTraffic measures what making the packets costs in the benchmarks below.
func BenchmarkTraffic(b *testing.B) {
	g := newTraffic(1000, 1)
	b.ReportAllocs()
	for b.Loop() {
		g.next()
	}
}

var benchFlows = []int{64, 10_000, 1_000_000}

// BenchmarkHit looks up packets of random flows, one after the other. With 64 flows everything is in the nearest cache.
func BenchmarkHit(b *testing.B) {
	for _, flows := range benchFlows {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			table, g := benchTable(b, flows, flows), newTraffic(flows, 1)
			var hit Hit
			b.ReportAllocs()
			for b.Loop() {
				if !table.Lookup(g.next(), tcp(packet.ACK), &hit) {
					b.Fatal("miss")
				}
			}
		})
	}
}

// BenchmarkHitAlone is BenchmarkHit with each lookup depending on the one before, so that the processor cannot overlap
// their cache misses. It measures how long a packet waits for its flow when nothing else is going on.
func BenchmarkHitAlone(b *testing.B) {
	for _, flows := range benchFlows {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			table, g := benchTable(b, flows, flows), newTraffic(flows, 1)
			var hit Hit
			b.ReportAllocs()
			for b.Loop() {
				if !table.Lookup(g.next(), tcp(packet.ACK), &hit) {
					b.Fatal("miss")
				}
				g.x += uint64(hit.Kind) // always 0, but the processor learns that only from the slot
			}
		})
	}
}

// BenchmarkHitParallel is BenchmarkHit on all processors at once; the time is that of all lookups together.
func BenchmarkHitParallel(b *testing.B) {
	for _, flows := range benchFlows {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			table := benchTable(b, flows, flows)
			var seed atomic.Uint64
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				g := newTraffic(flows, seed.Add(1)<<32)
				var hit Hit
				for pb.Next() {
					if !table.Lookup(g.next(), tcp(packet.ACK), &hit) {
						b.Error("miss")
						return
					}
				}
			})
		})
	}
}

// BenchmarkHitChurn is BenchmarkHitParallel while another goroutine inserts and deletes flows as fast as it can.
func BenchmarkHitChurn(b *testing.B) {
	const flows = 10_000
	table := benchTable(b, flows, 2*flows)
	var done atomic.Bool
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := flows; !done.Load(); n++ {
			e := benchEntry(flows + n%flows)
			if r, res := table.Insert(&e); res == Inserted {
				table.Delete(r, &e.Orig)
			}
		}
	})
	g := newTraffic(flows, 1)
	var hit Hit
	b.ReportAllocs()
	for b.Loop() {
		if !table.Lookup(g.next(), tcp(packet.ACK), &hit) {
			b.Error("miss")
			break
		}
	}
	done.Store(true)
	writer.Wait()
}

// BenchmarkMiss looks up packets that belong to no flow, all different, in a full table.
func BenchmarkMiss(b *testing.B) {
	for _, flows := range benchFlows {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			table, g := benchTable(b, flows, flows), newTraffic(flows, 1)
			g.tuple.Space = 7 // the flows have 0
			var hit Hit
			b.ReportAllocs()
			for b.Loop() {
				if table.Lookup(g.next(), tcp(packet.ACK), &hit) {
					b.Fatal("hit")
				}
			}
		})
	}
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

// BenchmarkHitBatch is BenchmarkHit for batches of packets, as they come from the Link, with Prefetch ahead of each
// batch. Its time is counted.
func BenchmarkHitBatch(b *testing.B) {
	for _, flows := range benchFlows {
		for _, size := range []int{2, 8, 32, 128} {
			b.Run(fmt.Sprintf("flows=%d/batch=%d", flows, size), func(b *testing.B) {
				table, g := benchTable(b, flows, flows), newTraffic(flows, 1)
				batch := make([]packet.Packet, size)
				var hit Hit
				at := size
				b.ReportAllocs()
				for b.Loop() {
					if at == size {
						at = 0
						for i := range batch {
							batch[i].Tuple = *g.next()
						}
						table.Prefetch(batch)
					}
					if !table.Lookup(&batch[at].Tuple, tcp(packet.ACK), &hit) {
						b.Fatal("miss")
					}
					at++
				}
			})
		}
	}
}
