package flow

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestOnEnd: the end of every flow is told once, with its last state, for whatever reason it leaves the table.
func TestOnEnd(t *testing.T) {
	type told struct {
		Entry
		Info
	}
	flowOf := func(n int) *Entry {
		o := packet.Tuple{Src: packet.Addr{15: 1}, Dst: packet.Addr{15: 2}, SrcPort: uint16(n), DstPort: 80, Proto: packet.UDP}
		return &Entry{Orig: o, Reply: o.Reverse(), Backend: uint64(n), Owner: 77}
	}
	for name, leave := range map[string]func(table *Table, clock *fakeClock, ref uint32){
		"deleted": func(table *Table, _ *fakeClock, ref uint32) { table.Delete(ref, &flowOf(1).Orig) },
		"its time is over": func(table *Table, clock *fakeClock, _ uint32) {
			advance(table, clock, 1000)
		},
		"its time is over, and another one has its tuple": func(table *Table, clock *fakeClock, _ uint32) {
			clock.now += 1000
			table.now.Store(clock.now)
			e := flowOf(1)
			table.Insert(e)
		},
		"for another one's sake": func(table *Table, _ *fakeClock, _ uint32) {
			for n := 2; table.Stats().Evicted == (Evicted{}); n++ {
				table.Insert(flowOf(n))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			table, clock, _ := newTable(t, 16)
			var ends []told
			table.OnEnd(func(e Entry, i Info) { ends = append(ends, told{e, i}) })
			ref, result := table.Insert(flowOf(1))
			if result != Inserted {
				t.Fatal(result)
			}
			var hit Hit
			answer := flowOf(1).Orig.Reverse()
			table.Lookup(&answer, tcp(0), &hit)
			table.Count(&hit, 100, packet.Segment{})
			leave(table, clock, ref)
			if len(ends) != 1 {
				t.Fatalf("told of %d ends", len(ends))
			}
			e := ends[0]
			if want := flowOf(int(e.Backend)); e.Orig != want.Orig || e.Reply != want.Reply || e.Owner != 77 {
				t.Errorf("told of %+v", e.Entry)
			}
			if e.Backend == 1 && (e.State != Replied || e.Counts[Reply] != Count{100, 1} || e.Ref != ref || e.Age != e.Idle) {
				t.Errorf("told of %+v, %+v", e.Entry, e.Info)
			}
			if name != "for another one's sake" && e.Backend != 1 {
				t.Errorf("told of flow %d", e.Backend)
			}
		})
	}
	t.Run("nothing is allocated", func(t *testing.T) {
		table, _, _ := newTable(t, 16)
		ended := 0
		table.OnEnd(func(e Entry, _ Info) { ended += int(e.Backend) })
		e := flowOf(1)
		if n := testing.AllocsPerRun(100, func() {
			ref, _ := table.Insert(e)
			table.Delete(ref, &e.Orig)
		}); n != 0 || ended != 101 {
			t.Errorf("%v allocations, %d ends", n, ended)
		}
	})
}
