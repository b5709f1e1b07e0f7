package flow

import (
	"math/rand/v2"
	"sync"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// tally adds up what changes say, by backend.
type tally struct {
	sync.Mutex
	open, waiting map[uint64]int64
	answered      int
	refused       int
}

func (t *tally) add(c Change) {
	t.Lock()
	defer t.Unlock()
	if t.open == nil {
		t.open, t.waiting = map[uint64]int64{}, map[uint64]int64{}
	}
	t.open[c.Backend] += c.Open()
	t.waiting[c.Backend] += c.Waiting()
	if c.Answered() {
		t.answered++
	}
	if c.Refused() {
		t.refused++
	}
}

// agree compares the sums with the flows in the table.
func (t *tally) agree(tt *testing.T, table *Table) {
	tt.Helper()
	open, waiting := map[uint64]int64{}, map[uint64]int64{}
	for i := range table.slots {
		var r record
		s := &table.slots[i]
		if state := s.loadLive().state(); state != free && table.load(uint32(i), &r, s.seq.Load()) {
			open[r.backend] += number(state.open())
			waiting[r.backend] += number(state.waiting())
		}
	}
	for b := range uint64(5) {
		if b > 0 && (t.open[b] != open[b] || t.waiting[b] != waiting[b]) {
			tt.Fatalf("backend %d: told of %d open and %d waiting flows, there are %d and %d", b, t.open[b], t.waiting[b], open[b], waiting[b])
		}
	}
	if t.open[0] != 0 {
		tt.Fatal("told of flows without a backend")
	}
}

// of returns the flow of a client port to a backend, SYN first.
func of(backend uint64, port uint16) *Entry {
	o := packet.Tuple{Src: packet.Addr{15: 1}, Dst: packet.Addr{15: 9}, SrcPort: port, DstPort: 80, Proto: packet.TCP}
	to := o
	to.Dst, to.DstPort = packet.Addr{15: byte(10 + backend)}, 8080
	return &Entry{Orig: o, Reply: to.Reverse(), Backend: backend, Kind: 1, Segment: tcp(packet.SYN)}
}

// TestChangesOfOneFlow: a connection from its SYN to its end, step by step.
func TestChangesOfOneFlow(t *testing.T) {
	const syn, ack, fin, rst = packet.SYN, packet.ACK, packet.FIN, packet.RST
	for name, c := range map[string]struct {
		segments          []packet.Segment // by turns of both ends, beginning with the backend
		open, waiting     int64
		answered, refused int
	}{
		"began":              {nil, 1, 1, 0, 0},
		"answered":           {[]packet.Segment{tcp(syn | ack)}, 1, 0, 1, 0},
		"answered twice":     {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(syn | ack)}, 1, 0, 1, 0},
		"established":        {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(ack)}, 1, 0, 1, 0},
		"closed by one":      {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(fin | ack)}, 1, 0, 1, 0},
		"closed by both":     {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(fin | ack), tcp(fin | ack)}, 0, 0, 1, 0},
		"refused":            {[]packet.Segment{tcp(rst | ack)}, 0, 0, 0, 1},
		"reset later":        {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(rst)}, 0, 0, 1, 0},
		"reset by the other": {[]packet.Segment{tcp(syn | ack), tcp(rst)}, 0, 0, 1, 0},
		"reset in vain":      {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(rst), tcp(ack)}, 1, 1, 1, 0},
		"it goes on":         {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(rst), tcp(ack), tcp(ack)}, 1, 0, 1, 0},
		"reset once more":    {[]packet.Segment{tcp(syn | ack), tcp(ack), tcp(rst), tcp(ack), tcp(rst)}, 0, 0, 1, 0},
	} {
		table, clock, _ := newTable(t, 16)
		var told tally
		table.OnChange(told.add)
		answers := 0
		e := of(1, 1000)
		table.OnAnswer(func(ref uint32) {
			var hit Hit
			if !table.Peek(&e.Orig, &hit) || hit.Ref != ref {
				t.Errorf("%s: the answer is of flow %d, want %d", name, ref, hit.Ref)
			}
			answers++
		})
		mustInsert(t, table, e)
		var hit Hit
		for i, seg := range c.segments {
			tp := e.Reply
			if i%2 == 1 {
				tp = e.Orig
			}
			if table.Lookup(&tp, seg, &hit) {
				table.Count(&hit, 40, seg)
			}
		}
		if told.open[1] != c.open || told.waiting[1] != c.waiting || told.answered != c.answered || told.refused != c.refused {
			t.Errorf("%s: %d open, %d waiting, %d answered, %d refused; want %+v", name, told.open[1], told.waiting[1], told.answered, told.refused, c)
		}
		if answers != c.answered {
			t.Errorf("%s: %d first answers, want %d", name, answers, c.answered)
		}
		if advance(table, clock, 1<<20); told.open[1] != 0 || told.waiting[1] != 0 {
			t.Errorf("%s: after its time %d open, %d waiting", name, told.open[1], told.waiting[1])
		}
	}
}

// TestChangesAddUp: whatever happens to flows, and after a restart, the sums are what is in the table.
func TestChangesAddUp(t *testing.T) {
	table, clock, mem := newTable(t, 64)
	told := new(tally)
	table.OnChange(told.add)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20_000 {
		e := of(r.Uint64N(5), uint16(r.IntN(200)))
		var hit Hit
		switch tp := []packet.Tuple{e.Orig, e.Reply}[r.IntN(2)]; r.IntN(8) {
		case 0, 1:
			table.Insert(e)
		case 2:
			if table.Peek(&e.Orig, &hit) {
				table.Delete(hit.Ref, &e.Orig)
			}
		case 3:
			advance(table, clock, uint32(r.IntN(40)))
		default:
			flags := []uint8{packet.SYN, packet.SYN | packet.ACK, packet.ACK, packet.ACK | packet.FIN, packet.RST | packet.ACK}[r.IntN(5)]
			table.Lookup(&tp, tcp(flags), &hit)
		}
		if i%5_000 == 4_999 {
			told.agree(t, table)
			var err error
			if table, err = Open(mem, Options{Capacity: 64, Clock: clock.read}); err != nil {
				t.Fatal(err)
			}
			told = new(tally)
			table.OnChange(told.add)
		}
		told.agree(t, table)
	}
}

// TestChangesTogether: the sums are right after packets, inserts and deletions at the same time.
func TestChangesTogether(t *testing.T) {
	table, clock, _ := newTable(t, 64)
	var told tally
	table.OnChange(told.add)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(g, 7))
			for range 5_000 {
				e := of(1+r.Uint64N(4), uint16(r.IntN(80)))
				var hit Hit
				switch r.IntN(6) {
				case 0:
					table.Insert(e)
				case 1:
					if table.Peek(&e.Orig, &hit) {
						table.Delete(hit.Ref, &e.Orig)
					}
				case 2:
					table.Lookup(&e.Orig, tcp(packet.ACK), &hit)
				default:
					table.Lookup(&e.Reply, tcp([]uint8{packet.SYN | packet.ACK, packet.FIN | packet.ACK, packet.RST | packet.ACK}[r.IntN(3)]), &hit)
				}
			}
		})
	}
	wg.Wait()
	told.agree(t, table)
	advance(table, clock, 1<<20)
	told.agree(t, table)
	for b, n := range told.open {
		if n != 0 {
			t.Errorf("backend %d has %d open flows after all are gone", b, n)
		}
	}
}
