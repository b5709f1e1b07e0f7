package flow

import (
	"fmt"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// newMem returns zeroed memory for a table.
func newMem(capacity int) []byte {
	return aligned(Size(capacity))
}

type fakeClock struct{ now uint32 }

func (c *fakeClock) read() uint32 { return c.now }

// newTable returns a table whose clock stands still until advance.
func newTable(t testing.TB, capacity int) (*Table, *fakeClock, []byte) {
	t.Helper()
	mem, c := newMem(capacity), &fakeClock{1000}
	table, err := Open(mem, Options{Capacity: capacity, Clock: c.read, Seed: 42})
	if err != nil {
		t.Fatal(err)
	}
	return table, c, mem
}

// advance moves the clock and sweeps everything.
func advance(t *Table, c *fakeClock, seconds uint32) (freed int) {
	c.now += seconds
	for range sweepParts {
		freed += t.Sweep()
	}
	return freed
}

func tuple(proto packet.Proto, src, dst string) packet.Tuple {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return packet.Tuple{
		Src: packet.AddrFrom(s.Addr()), Dst: packet.AddrFrom(d.Addr()), SrcPort: s.Port(), DstPort: d.Port(), Proto: proto,
	}
}

// tcp returns a segment with these flags, about whose place in the stream nothing matters.
func tcp(flags uint8) packet.Segment { return packet.Segment{Flags: flags} }

func direct(orig packet.Tuple) *Entry { return &Entry{Orig: orig, Reply: orig.Reverse()} }

func mustInsert(t testing.TB, table *Table, e *Entry) uint32 {
	t.Helper()
	r, res := table.Insert(e)
	if res != Inserted {
		t.Fatalf("insert %v: %v", e.Orig, res)
	}
	return r
}

func TestBothDirections(t *testing.T) {
	for _, c := range []struct {
		name            string
		orig, reply     packet.Tuple
		translate       bool
		spaceO, spaceRe uint32
	}{
		{"direct", tuple(packet.TCP, "10.0.0.1:1000", "10.0.0.2:80"), tuple(packet.TCP, "10.0.0.2:80", "10.0.0.1:1000"), false, 0, 0},
		{"service", tuple(packet.TCP, "10.0.0.1:1000", "10.96.0.1:80"), tuple(packet.TCP, "10.0.0.2:8080", "10.0.0.1:1000"), true, 0, 0},
		{"only the port", tuple(packet.UDP, "10.0.0.1:1000", "10.0.0.2:80"), tuple(packet.UDP, "10.0.0.2:8080", "10.0.0.1:1000"), true, 0, 0},
		{"service v6", tuple(packet.UDP, "[fd00::1]:1000", "[fd96::1]:80"), tuple(packet.UDP, "[fd00::2]:8080", "[fd00::1]:1000"), true, 0, 0},
		{"hairpin", tuple(packet.TCP, "10.0.0.1:1000", "10.96.0.1:80"), tuple(packet.TCP, "10.0.0.1:8080", "10.0.0.254:1000"), true, 0, 0},
		{"from a peer", tuple(packet.TCP, "203.0.113.9:1000", "10.0.0.2:80"), tuple(packet.TCP, "10.0.0.2:80", "203.0.113.9:1000"), false, 77, 0},
		{"echo", tuple(packet.ICMPv4, "10.0.0.1:7", "10.0.0.2:7"), tuple(packet.ICMPv4, "10.0.0.2:7", "10.0.0.1:7"), false, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			table, _, _ := newTable(t, 100)
			c.orig.Space, c.reply.Space = c.spaceO, c.spaceRe
			e := Entry{Orig: c.orig, Reply: c.reply, Backend: 0xbac4e7d, Via: 99, Kind: 3, Checked: 5, Segment: tcp(packet.SYN)}
			ref := mustInsert(t, table, &e)
			var hit Hit
			for dir, want := range map[Dir]struct{ tp, to packet.Tuple }{
				Original: {c.orig, c.reply.Reverse()}, Reply: {c.reply, c.orig.Reverse()},
			} {
				if !table.Peek(&want.tp, &hit) {
					t.Fatalf("direction %d: not found", dir)
				}
				state := hit.State
				if got := (Hit{ref, dir, c.translate, 3, state, 5, 0xbac4e7d, 99, want.to}); hit != got {
					t.Errorf("direction %d:\n got %+v\nwant %+v", dir, hit, got)
				}
			}
			other := c.orig
			other.Space++
			if table.Peek(&other, &hit) {
				t.Error("found in another space")
			}
			other = c.orig
			other.Proto = packet.SCTP
			if table.Peek(&other, &hit) {
				t.Error("found under another protocol")
			}
			if _, res := table.Insert(&e); res != Exists {
				t.Errorf("second insert: %v", res)
			}
			if !table.Delete(ref, &c.orig) || table.Peek(&c.orig, &hit) || table.Peek(&c.reply, &hit) || table.Delete(ref, &c.orig) {
				t.Error("delete did not remove the flow once")
			}
			if n := table.Stats().Len; n != 0 {
				t.Errorf("%d flows are left", n)
			}
		})
	}
}

func TestSelfFlow(t *testing.T) {
	table, _, _ := newTable(t, 10)
	self := tuple(packet.UDP, "10.0.0.1:53", "10.0.0.1:53")
	r := mustInsert(t, table, direct(self))
	var hit Hit
	if !table.Lookup(&self, tcp(0), &hit) || hit.Dir != Original || hit.Translate {
		t.Fatalf("got %+v", hit)
	}
	if !table.Delete(r, &self) || table.Lookup(&self, tcp(0), &hit) {
		t.Fatal("delete failed")
	}
	checkIndexEmpty(t, table)
}

// TestThreeServicesOneBackend connects from one client port to three Services with the same backend.
func TestThreeServicesOneBackend(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMPv4} {
		table, _, _ := newTable(t, 100)
		ports := map[uint16]bool{}
		for i := range 3 {
			e := Entry{
				Orig:  tuple(proto, "10.0.0.1:5000", fmt.Sprintf("10.96.0.%d:5000", i+1)),
				Reply: tuple(proto, "10.0.0.9:5000", "10.0.0.1:5000"),
			}
			mustInsert(t, table, &e)
			ports[e.Reply.DstPort] = true
			if i > 0 && (e.Reply.DstPort < firstPort || e.Reply.DstPort > lastPort) {
				t.Errorf("proto %d: port %d is not in the usual range", proto, e.Reply.DstPort)
			}
			if echo := proto == packet.ICMPv4; echo != (e.Reply.SrcPort == e.Reply.DstPort) && i > 0 {
				t.Errorf("proto %d: reply %v", proto, e.Reply)
			}
			var hit Hit
			if !table.Lookup(&e.Reply, tcp(0), &hit) || hit.To != e.Orig.Reverse() {
				t.Errorf("proto %d: answer goes to %+v", proto, hit.To)
			}
		}
		if len(ports) != 3 {
			t.Errorf("proto %d: ports %v are not distinct", proto, ports)
		}
	}
}

// TestPrivilegedPorts connects from one client port to 100 Services with the same backend. A port below 1024 is
// replaced by another one below 1024 (RFC 4787 REQ-3a), and any other by one from 1024 on.
func TestPrivilegedPorts(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.SCTP} {
		for _, port := range []int{1, 111, 600, 1023, 1024, 5000, 65535} {
			table, _, _ := newTable(t, 200)
			for i := range 100 {
				e := Entry{
					Orig:  tuple(proto, fmt.Sprintf("10.0.0.1:%d", port), fmt.Sprintf("10.96.0.%d:2049", i+1)),
					Reply: tuple(proto, "10.0.0.9:2049", fmt.Sprintf("10.0.0.1:%d", port)),
				}
				mustInsert(t, table, &e)
				if got := e.Reply.DstPort; (got < 1024) != (port < 1024) || i > 0 && got < 512 {
					t.Fatalf("proto %d: port %d became %d", proto, port, got)
				}
			}
		}
	}
	// An echo's identifier is no port: it may become any.
	table, _, _ := newTable(t, 1000)
	for i := range 600 {
		mustInsert(t, table, &Entry{
			Orig:  tuple(packet.ICMPv4, "10.0.0.1:7", fmt.Sprintf("10.96.%d.%d:7", i/250, i%250+1)),
			Reply: tuple(packet.ICMPv4, "10.0.0.9:7", "10.0.0.1:7"),
		})
	}
}

func TestNoPort(t *testing.T) {
	const capacity = 70000
	table, _, _ := newTable(t, capacity)
	var hit Hit
	reply := tuple(packet.TCP, "10.0.0.9:80", "10.0.0.1:0")
	for port := firstMore; port <= 65535; port++ {
		e := Entry{Orig: tuple(packet.TCP, fmt.Sprintf("10.0.0.1:%d", port), "10.96.0.1:80"), Reply: reply}
		e.Reply.DstPort = uint16(port)
		mustInsert(t, table, &e)
		if table.Lookup(&e.Reply, tcp(packet.SYN|packet.ACK), &hit); !table.Lookup(&e.Orig, tcp(packet.ACK), &hit) || hit.State != Established {
			t.Fatal(hit.State)
		}
	}
	e := Entry{Orig: tuple(packet.TCP, "10.0.0.1:5000", "10.96.0.2:80"), Reply: reply}
	e.Reply.DstPort = 5000
	before := e
	if _, res := table.Insert(&e); res != NoPort || e != before {
		t.Errorf("got %v, entry %+v", res, e)
	}
	gre := tuple(47, "10.0.0.1:0", "10.0.0.9:0")
	mustInsert(t, table, direct(gre))
	e = Entry{Orig: tuple(47, "10.0.0.1:0", "10.96.0.1:0"), Reply: gre.Reverse()}
	if _, res := table.Insert(&e); res != NoPort {
		t.Errorf("protocol without ports: %v", res)
	}
	if s := table.Stats(); s.NoPort != 2 || s.Len != 65535-firstMore+2 {
		t.Errorf("stats %+v", s)
	}
}

type pkt struct {
	dir   Dir
	flags uint8
	want  State
}

func TestStaleRef(t *testing.T) {
	table, _, _ := newTable(t, 1)
	a, b := direct(tuple(packet.UDP, "10.0.0.1:1", "10.0.0.2:1")), direct(tuple(packet.UDP, "10.0.0.1:2", "10.0.0.2:2"))
	old := mustInsert(t, table, a)
	if table.Delete(old, &b.Orig) {
		t.Error("deleted under the name of another flow")
	}
	table.SetChecked(old, 7)
	var hit Hit
	if table.Lookup(&a.Orig, tcp(0), &hit); hit.Checked != 7 {
		t.Errorf("checked %d, want 7", hit.Checked)
	}
	table.Delete(old, &a.Orig)
	table.SetChecked(old, 8)
	mustInsert(t, table, b)
	table.SetChecked(old, 9)
	if table.Lookup(&b.Orig, tcp(0), &hit); hit.Checked != 0 {
		t.Errorf("a stale ref changed the next flow: checked %d", hit.Checked)
	}
	if table.Delete(old, &b.Orig) || table.Delete(1<<24-1, &b.Orig) {
		t.Error("a stale ref deleted the next flow")
	}
}

// TestExpiredInTheWay: a flow that Lookup no longer finds must not keep Insert from adding it.
func TestExpiredInTheWay(t *testing.T) {
	table, clock, _ := newTable(t, 10)
	old := direct(tuple(packet.UDP, "10.0.0.1:1000", "10.0.0.2:80"))
	mustInsert(t, table, old)
	clock.now += 1000
	table.now.Store(clock.now)
	e := Entry{Orig: tuple(packet.UDP, "10.0.0.1:1000", "10.96.0.1:80"), Reply: old.Reply}
	mustInsert(t, table, &e)
	if e.Reply != old.Reply {
		t.Errorf("an expired flow kept its reply tuple: %v", e.Reply)
	}
	clock.now += 1000
	table.now.Store(clock.now)
	mustInsert(t, table, &e)
	if n := table.Stats().Len; n != 1 {
		t.Errorf("%d flows, want 1", n)
	}
}

func TestRange(t *testing.T) {
	table, clock, _ := newTable(t, 1000)
	want := map[packet.Tuple]Entry{}
	for i := range 100 {
		e := Entry{
			Orig:  tuple(packet.UDP, fmt.Sprintf("10.0.0.1:%d", i+1), "10.96.0.1:80"),
			Reply: tuple(packet.UDP, "10.0.0.2:80", fmt.Sprintf("10.0.0.1:%d", i+1)), Backend: uint64(i), Via: 1, Kind: 9, Checked: 4,
		}
		mustInsert(t, table, &e)
		want[e.Orig] = e
	}
	advance(table, clock, 10)
	table.Range(func(e *Entry, info Info) bool {
		if *e != want[e.Orig] || info.State != Unreplied || info.Idle != 10 || info.Age != 10 || info.ExpiresIn != 20 {
			t.Errorf("got %+v %+v", *e, info)
		}
		delete(want, e.Orig)
		if !table.Delete(info.Ref, &e.Orig) {
			t.Error("cannot delete what is shown")
		}
		return len(want) > 40
	})
	if len(want) != 40 || table.Stats().Len != 40 {
		t.Errorf("%d flows were not shown, %d are left; want 40", len(want), table.Stats().Len)
	}
}

func TestPressure(t *testing.T) {
	const capacity = 1000
	table, clock, _ := newTable(t, capacity)
	flow := func(proto packet.Proto, i int) *Entry {
		e := direct(tuple(proto, fmt.Sprintf("10.0.%d.%d:1000", i/250, i%250), "10.1.0.1:80"))
		e.Segment = tcp(packet.SYN)
		return e
	}
	var hit Hit
	for i := range capacity / 2 {
		e := flow(packet.TCP, i)
		mustInsert(t, table, e)
		table.Lookup(&e.Reply, tcp(packet.SYN|packet.ACK), &hit)
		table.Lookup(&e.Orig, tcp(packet.ACK), &hit)
	}
	for i := range 3 * capacity {
		mustInsert(t, table, flow(packet.UDP, i)) // evicts an unreplied one
	}
	if s := table.Stats(); s.Len != capacity || s.Evicted != (Evicted{FromOwn: 5 * capacity / 2}) || s.Full != 0 {
		t.Errorf("stats %+v", s)
	}
	for i := range capacity / 2 {
		if e := flow(packet.TCP, i); !table.Peek(&e.Orig, &hit) || hit.State != Established {
			t.Fatalf("established flow %d was evicted", i)
		}
	}
	if freed := advance(table, clock, 6); freed != 0 {
		t.Errorf("Sweep freed %d flows of an owner who is alone", freed)
	}
	other := flow(packet.SCTP, 0)
	other.Owner = firstOwner
	mustInsert(t, table, other) // with two owners, the first has more than an equal share
	if freed := advance(table, clock, 6); freed < capacity/10 || table.Stats().Evicted.Pressed != uint64(freed) || table.Stats().Len > capacity*9/10 {
		t.Errorf("Sweep freed %d under pressure, %+v", freed, table.Stats())
	}
	if !table.Peek(&other.Orig, &hit) {
		t.Error("the only flow of its owner was evicted")
	}
}

// TestPrefetch: Prefetch of a batch of any length, with known and unknown packets, does not change what Lookup finds.
func TestPrefetch(t *testing.T) {
	const flows = 2 * fetchFrom
	table, _, _ := newTable(t, flows)
	for n := range flows {
		e := benchEntry(n)
		mustInsert(t, table, &e)
	}
	for _, size := range []int{0, 1, fetchBatch, 3*fetchBatch + 1} {
		batch := make([]packet.Packet, size)
		for i := range batch {
			e := benchEntry(i * 50)
			batch[i].Tuple = [...]packet.Tuple{e.Orig, e.Reply}[i&1]
			batch[i].Tuple.Space = uint32(i % 3 / 2) // every third packet is unknown
		}
		before := table.Stats()
		table.Prefetch(batch)
		if s := table.Stats(); s != before {
			t.Errorf("batch of %d: stats %+v, were %+v", size, s, before)
		}
		for i := range batch {
			var hit Hit
			if got := table.Peek(&batch[i].Tuple, &hit); got != (i%3 != 2) || got && (hit.Backend != uint64(i*50) || hit.Dir != Dir(i&1)) {
				t.Errorf("batch of %d: packet %d: %v, %+v", size, i, got, hit)
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	for name, c := range map[string]struct {
		mem []byte
		o   Options
	}{
		"too small":        {newMem(10), Options{Capacity: 11}},
		"nothing":          {nil, Options{}},
		"too many":         {newMem(10), Options{Capacity: maxSlots + 1}},
		"negative":         {newMem(10), Options{Capacity: -1}},
		"not aligned":      {newMem(10)[1:], Options{Capacity: 9}},
		"only the header":  {newMem(0), Options{}},
		"less than header": {make([]byte, 100), Options{}},
	} {
		if _, err := Open(c.mem, c.o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A flow that is taken over from elsewhere begins in the state that it had there: it lives as long, and nobody takes
// its next packet for a first answer.
func TestBegins(t *testing.T) {
	table, clock, _ := newTable(t, 16)
	var told tally
	table.OnChange(told.add)
	e := of(1, 1000)
	e.Segment, e.Begins = tcp(0), Established
	mustInsert(t, table, e)
	var hit Hit
	if advance(table, clock, 3600); !table.Lookup(&e.Reply, tcp(packet.ACK), &hit) || hit.State != Established {
		t.Errorf("after an hour it is %v", hit.State)
	}
	if told.open[1] != 1 || told.waiting[1] != 0 || told.answered != 0 {
		t.Errorf("told of %d open, %d waiting, %d answered", told.open[1], told.waiting[1], told.answered)
	}
}
