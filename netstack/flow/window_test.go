package flow

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// said is a segment of one direction.
type said struct {
	dir Dir
	packet.Segment
}

func seg(d Dir, flags uint8, seq, ack uint32) said {
	return said{d, packet.Segment{Seq: seq, Ack: ack, Flags: flags}}
}

// pass takes a segment through the table as the packet path does, and returns the state that it found or made.
func (s said) pass(t *testing.T, table *Table, e *Entry) State {
	t.Helper()
	var hit Hit
	tp := [2]packet.Tuple{e.Orig, e.Reply}[s.dir]
	if !table.Lookup(&tp, s.Segment, &hit) {
		t.Fatalf("%+v finds no flow", s)
	}
	table.Count(&hit, 40, s.Segment)
	return hit.State
}

// begin inserts the flow that the first segment begins, and takes the others through the table.
func begin(t *testing.T, table *Table, list ...said) *Entry {
	t.Helper()
	e := direct(tuple(packet.TCP, "10.0.0.1:1000", "10.0.0.2:80"))
	e.Segment = list[0].Segment
	mustInsert(t, table, e)
	for _, s := range list[1:] {
		s.pass(t, table, e)
	}
	return e
}

// TestResets: a reset counts if its receiver obeys it. The client's numbers begin at c, the server's at s.
func TestResets(t *testing.T) {
	const S, A, F, R = packet.SYN, packet.ACK, packet.FIN, packet.RST
	c, s := uint32(1<<32-5000), uint32(0x7000_0000) // the client's wrap around
	cSYN, sSYN, cACK := seg(Original, S, c, 0), seg(Reply, S|A, s, c+1), seg(Original, A, c+1, s+1)
	open := []said{cSYN, sSYN, cACK}
	// The client asks in 8,000 bytes and is answered in 100.
	used := append(open[:3:3], seg(Original, A, c+1, s+1), seg(Reply, A, s+1, c+8001), seg(Original, A, c+8001, s+101))
	for _, test := range []struct {
		name   string
		before []said
		reset  said
		counts bool
	}{
		{"of the client", used, seg(Original, R|A, c+8001, s+101), true},
		{"of the server", used, seg(Reply, R|A, s+101, c+8001), true},
		{"of the client, random", used, seg(Original, R, 0x1234_5678, 0), false},
		{"of the server, random", used, seg(Reply, R, 0x1234_5678, 0), false},
		{"of the client, with the server's number", used, seg(Original, R, s+101, 0), false},
		{"of the server, with the client's number", used, seg(Reply, R|A, c+8001, s+101), false},
		{"as many bytes are under way as ever can be", used, seg(Reply, R, s+101+reach, 0), true},
		{"more than that", used, seg(Reply, R, s+101+reach+markUnit, 0), false},
		{"of long ago", used, seg(Reply, R, s+101-markUnit, 0), false},
		{"a forged one acknowledges what is right", used, seg(Reply, R|A, 0x1234_5678, c+8001), false},
		{"the number 0, and it acknowledges nothing", used, seg(Reply, R, 0, c+8001), false},
		{"after data that nobody has acknowledged yet", append(used[:6:6], seg(Original, A, c+8001+1<<20, s+101)), seg(Original, R, c+8001+2<<20, 0), true},
		{"after a repeated segment", append(used[:6:6], seg(Original, A, c+1, s+101)), seg(Original, R, c+8001, 0), true},
		{"after an old acknowledgement that came late", append(used[:6:6], seg(Reply, A, s+1, c+1)), seg(Original, R, c+8001, 0), true},
		{"half closed", append(used[:6:6], seg(Reply, F|A, s+101, c+8001), seg(Original, A, c+8001, s+102)), seg(Reply, R, s+102, 0), true},
		{"half closed, random", append(used[:6:6], seg(Reply, F|A, s+101, c+8001)), seg(Original, R, 0x1234_5678, 0), false},
		{"both closed, random", append(used[:6:6], seg(Reply, F|A, s+101, c+8001), seg(Original, F|A, c+8001, s+102)), seg(Original, R, 0x1234_5678, 0), false},
		// Half-open (RFC 9293 3.5.1): the reset's number is what the probe acknowledged.
		{"answers a keep-alive probe", append(used[:6:6], seg(Original, A, c+8000, s+101)), seg(Reply, R, s+101, 0), true},
		{"answers data of the server", append(used[:6:6], seg(Reply, A, s+101, c+8001)), seg(Original, R, c+8001, 0), true},
		// SYN-SENT (RFC 9293 3.10.7.3).
		{"refused", open[:1], seg(Reply, R|A, 0, c+1), true},
		{"refused, with data in the SYN", open[:1], seg(Reply, R|A, 0, c+500), true},
		{"refused, but another SYN", open[:1], seg(Reply, R|A, 0, 0x1234_5678), false},
		{"refused, without a word about the SYN", open[:1], seg(Reply, R, 0, c+1), false},
		{"given up", open[:1], seg(Original, R, c+1, 0), true},
		{"an unexpected answer", open[:2], seg(Original, R, c+1, 0), true},
		{"refused late", open[:2], seg(Reply, R|A, s+1, c+1), true},
		{"refused late, random", open[:2], seg(Reply, R|A, 0x1234_5678, 0x1234_5678), false},
		// The client lost the connection, and begins another one from the same port.
		{"the server lost it too", append(used[:6:6], seg(Original, S, 0x4321_0000, 0)), seg(Reply, R|A, 0, 0x4321_0001), true},
		{"the server has it (RFC 5961 4.2)", append(used[:6:6], seg(Original, S, 0x4321_0000, 0), seg(Reply, A, s+101, c+8001)), seg(Original, R, c+8001, 0), true},
		// The table did not see the beginning.
		{"in the middle", []said{seg(Original, A, c+1, s+1)}, seg(Reply, R, s+1, 0), true},
		{"in the middle, random", []said{seg(Original, A, c+1, s+1)}, seg(Reply, R, 0x1234_5678, 0), false},
		{"the receiver has said nothing", []said{seg(Original, A, c+1, s+1)}, seg(Original, R, 0x1234_5678, 0), true},
		// A forged reset must not make the next one count.
		{"after a forged one", append(used[:6:6], seg(Original, R|A, 0x1234_5678, 0x8765_4321)), seg(Reply, R, 0x8765_4321, 0), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			table, _, _ := newTable(t, 10)
			e := begin(t, table, test.before...)
			var before, after Hit
			table.Peek(&e.Orig, &before)
			found := test.reset.pass(t, table, e)
			table.Peek(&e.Orig, &after)
			want := before.State
			if test.counts {
				want = Reset
			}
			if found != want || after.State != want {
				t.Errorf("%v became %v (told %v), want %v", before.State, after.State, found, want)
			}
		})
	}
}

// TestForgedResetsLife: resets outside the window neither end a silent connection nor prolong its life.
func TestForgedResetsLife(t *testing.T) {
	table, clock, mem := newTable(t, 10)
	const A, R = packet.ACK, packet.RST
	e := begin(t, table, seg(Original, packet.SYN, 1000, 0), seg(Reply, packet.SYN|A, 9000, 1001), seg(Original, A, 1001, 9001))
	forged := []said{seg(Original, R, 1<<31, 0), seg(Reply, R|A, 1<<31, 1<<31)}
	for i, s := range forged {
		advance(table, clock, 40000)
		if state := s.pass(t, table, e); state != Established {
			t.Fatalf("forged reset %d: %v", i, state)
		}
	}
	// What is known of the streams outlives the process, and a change of the table's size.
	open := func(next *Table, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		table = next
		for i, s := range forged {
			if state := s.pass(t, table, e); state != Established {
				t.Errorf("forged reset %d: %v", i, state)
			}
		}
	}
	open(Open(bytes.Clone(mem), Options{Clock: clock.read}))
	open(Convert(mem, newMem(20), Options{Clock: clock.read}))
	advance(table, clock, 6400)
	if n := table.Stats().Len; n != 1 {
		t.Errorf("%d flows when a day has passed", n)
	}
	if advance(table, clock, 1) != 1 {
		t.Error("the flow lives for longer than a day")
	}
}

// exactly is the slow judge of a reset. It knows the whole number of bytes that were acknowledged, beginning with the
// SYN's number isn. low says whether the reset must count, high whether it may.
func exactly(isn uint32, acked uint64, seq uint32) (low, high bool) {
	from := uint64(isn) + acked
	for k := range uint64(4) { // every number that the stream may have where the segment says seq
		at := uint64(seq) + (from>>32+k)<<32
		if at < 1<<32 {
			continue
		}
		at -= 1 << 32
		low = low || at >= from && at <= from+reach
		high = high || at+markUnit > from && at < from+reach+markUnit
	}
	return low, high
}

// end is an end of a simulated connection.
type end struct {
	isn            uint32
	sent, received uint64 // bytes since the SYN's number
}

func (e *end) segment(d Dir, flags uint8, of *end) said {
	return seg(d, flags, e.isn+uint32(e.sent), of.isn+uint32(e.received))
}

// TestResetsAgainstExact: connections with losses, repeated and late segments, and numbers that wrap around. What the
// ends really send counts always, and other resets count as the exact judge says.
func TestResetsAgainstExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	judged := map[bool]int{}
	for range 300 {
		ends := [2]end{{isn: r.Uint32(), sent: 1}, {isn: r.Uint32(), sent: 1, received: 1}}
		ends[0].received = 1
		acked := [2]uint64{1, 1} // of each direction, as the table has seen it last
		table, _, _ := newTable(t, 4)
		e := begin(t, table, seg(Original, packet.SYN, ends[0].isn, 0), seg(Reply, packet.SYN|packet.ACK, ends[1].isn, ends[0].isn+1),
			seg(Original, packet.ACK, ends[0].isn+1, ends[1].isn+1))
		for range 200 {
			d := Dir(r.IntN(2))
			me, other := &ends[d], &ends[1-d]
			switch r.IntN(5) {
			case 0: // more is under way, as far as the acknowledgements that passed give room
				me.sent += min(r.Uint64N(20<<20), acked[d]+reach-me.sent)
			case 1: // some of it arrives
				me.received += r.Uint64N(other.sent - me.received + 1)
			case 2: // a new segment passes
				me.segment(d, packet.ACK, other).pass(t, table, e)
				acked[1-d] = me.received
			case 3: // one of some time ago passes, sent again or late
				late := *me
				late.sent -= min(late.sent, r.Uint64N(1<<20))
				late.received -= min(late.received-1, r.Uint64N(8<<20))
				if other.sent-late.received <= reach {
					late.segment(d, packet.ACK, other).pass(t, table, e)
					acked[1-d] = late.received
				}
			case 4:
				seq := r.Uint32()
				if r.IntN(2) == 0 { // near the window's edges
					seq = me.isn + uint32(acked[d]) + []uint32{0, reach}[r.IntN(2)] + r.Uint32N(4*markUnit) - 2*markUnit
				}
				low, high := exactly(me.isn, acked[d], seq)
				got := table.slots[0].marks.obeyed(Established, d, packet.Segment{Seq: seq, Flags: packet.RST})
				if got != low && got != high {
					t.Fatalf("%d bytes of direction %d from number %d on, a reset at %d: %v, want between %v and %v", acked[d], d, me.isn, seq, got, low, high)
				}
				judged[got]++
			}
			if !table.slots[0].marks.obeyed(Established, d, me.segment(d, packet.RST, other).Segment) {
				t.Fatalf("a true reset of direction %d does not count: %+v, acknowledged %d", d, ends, acked[d])
			}
		}
	}
	if judged[true] < 100 || judged[false] < 100 {
		t.Errorf("the judgements are too much of one kind: %v", judged)
	}
}
