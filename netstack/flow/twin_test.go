package flow

import (
	"math/rand/v2"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// twin is the slow, obviously right flow table.
type twin struct {
	now   uint32
	flows map[packet.Tuple]*twinFlow // each flow by both of its tuples
	seen  []packet.Tuple             // every reply tuple so far, with the chosen ports
}

type twinFlow struct {
	e                                 Entry
	seen, checked                     uint32
	replied, synAck, established, rst bool
	fin                               [2]bool
	stream                            [2]twinStream // by Dir
}

// twinStream is how much of a direction's stream is known to have arrived.
type twinStream struct {
	known bool
	at    uint32
}

// holds reports whether seq is in the window: all that has arrived is before it, and 32 MiB of it may be under way.
func (s twinStream) holds(seq uint32) bool { return s.known && seq-s.at <= 32<<20 }

// obeys reports whether the receiver of a reset will obey it.
func (f *twinFlow) obeys(d Dir, seg packet.Segment) bool {
	from, to := f.stream[d], f.stream[1-d]
	answer := seg.Flags&packet.ACK != 0 && to.holds(seg.Ack)
	waiting := !f.synAck && !f.established && !f.rst && !f.fin[0] && !f.fin[1] && to.known
	if !from.known {
		return d == Original || !waiting || answer
	}
	return from.holds(seg.Seq) || seg.Seq == 0 && answer
}

// learn takes what a packet says that went on.
func (f *twinFlow) learn(d Dir, seg packet.Segment) {
	if seg.Flags&packet.RST != 0 {
		return
	}
	if seg.Flags&packet.ACK != 0 {
		f.stream[1-d] = twinStream{true, seg.Ack}
	}
	if seg.Flags&packet.SYN != 0 {
		f.stream[d] = twinStream{true, seg.Seq}
	}
}

func (f *twinFlow) seconds() uint32 {
	switch f.e.Orig.Proto {
	case packet.TCP, packet.SCTP:
		switch {
		case f.rst:
			return 120
		case f.fin[0] && f.fin[1]:
			return 62
		case f.fin[0] || f.fin[1]:
			return 3600
		case f.established:
			return 86400
		}
		return 60
	case packet.UDP:
		switch {
		case !f.replied:
			return 30
		case f.e.Reply.SrcPort == 53:
			return 10
		}
		return 120
	case packet.ICMPv4:
		return 30
	}
	return 600
}

func (f *twinFlow) ended() bool { return f.rst || f.fin[0] && f.fin[1] }

// packet takes one more packet, at now.
func (f *twinFlow) packet(d Dir, flags uint8, now uint32) {
	early := f.e.Orig.Proto.Connects() && !f.rst && !f.established && !f.fin[0] && !f.fin[1]
	f.advance(d, flags)
	if f.seen = now; early && f.rst {
		f.seen -= 110
	}
}

func (f *twinFlow) advance(d Dir, flags uint8) {
	if d == Reply {
		f.replied = true
	}
	switch {
	case f.rst:
		if d == Original && flags&(packet.RST|packet.SYN) == 0 { // the opening end lives: as if opened anew
			f.synAck, f.established, f.rst, f.fin = false, false, false, [2]bool{}
		}
		return
	case f.ended():
		f.rst = flags&packet.RST != 0
		return
	}
	switch {
	case flags&packet.RST != 0:
		f.rst = true
	case flags&packet.FIN != 0:
		f.fin[d] = true
	case flags&packet.SYN != 0:
		f.synAck = f.synAck || d == Reply
	case d == Reply || f.synAck:
		f.established = true
	}
}

func (w *twin) purge() {
	for tp, f := range w.flows {
		if w.now-f.seen > f.seconds() {
			delete(w.flows, tp)
		}
	}
}

func (w *twin) lookup(tp packet.Tuple, seg packet.Segment) (f *twinFlow, d Dir, closed, ok bool) {
	flags := seg.Flags
	if f, ok = w.flows[tp]; !ok {
		return nil, 0, false, false
	}
	if f.e.Orig != tp {
		d = Reply
	}
	if tp.Proto.Connects() && f.ended() && flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) == packet.SYN {
		return f, d, true, true
	}
	if tp.Proto != packet.TCP || flags&packet.RST == 0 || f.obeys(d, seg) {
		f.packet(d, flags, w.now)
	}
	return f, d, false, true
}

// insert uses the port that the table chose, after checking it.
func (w *twin) insert(t *testing.T, asked, got Entry, res Result) {
	_, origTaken := w.flows[asked.Orig]
	_, replyTaken := w.flows[asked.Reply]
	switch {
	case origTaken:
		if res != Exists {
			t.Fatalf("insert %v: %v, want exists", asked.Orig, res)
		}
		return
	case replyTaken && (asked.Orig.Proto == 47):
		if res != NoPort {
			t.Fatalf("insert %v: %v, want no-port", asked.Orig, res)
		}
		return
	case res != Inserted:
		t.Fatalf("insert %v: %v, want inserted", asked.Orig, res)
	}
	want := asked
	if replyTaken {
		want.Reply.DstPort = got.Reply.DstPort
		if asked.Orig.Proto == packet.ICMPv4 {
			want.Reply.SrcPort = got.Reply.DstPort
		}
		if _, taken := w.flows[got.Reply]; taken {
			t.Fatalf("insert %v: chose %v, which is taken", asked.Orig, got.Reply)
		}
	}
	if got != want {
		t.Fatalf("insert: got %+v, want %+v", got, want)
	}
	f := &twinFlow{e: got, checked: got.Checked}
	f.packet(Original, got.Segment.Flags, w.now)
	f.learn(Original, got.Segment)
	w.flows[got.Orig], w.flows[got.Reply] = f, f
	w.seen = append(w.seen, got.Reply)
}

func (w *twin) remove(f *twinFlow) {
	delete(w.flows, f.e.Orig)
	delete(w.flows, f.e.Reply)
}

// script makes choices from fuzz data.
type script struct{ data []byte }

func (s *script) upTo(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b) % n
}

// tuple returns one of few tuples, so that they clash often.
func (s *script) tuple() packet.Tuple {
	protos := [...]packet.Proto{packet.TCP, packet.UDP, packet.TCP, packet.ICMPv4, 47, packet.SCTP}
	ports := [...]uint16{53, 80, 4000}
	tp := packet.Tuple{Proto: protos[s.upTo(len(protos))], Space: uint32(s.upTo(8) / 7)}
	tp.Src, tp.Dst = packet.Addr{15: byte(s.upTo(3))}, packet.Addr{10: 0xff, 11: 0xff, 15: byte(s.upTo(3))}
	if s.upTo(2) == 0 {
		tp.Src, tp.Dst = tp.Dst, tp.Src
	}
	tp.SrcPort, tp.DstPort = ports[s.upTo(3)], ports[s.upTo(3)]
	switch tp.Proto {
	case packet.ICMPv4:
		tp.DstPort = tp.SrcPort
	case 47:
		tp.SrcPort, tp.DstPort = 0, 0
	}
	return tp
}

// segment returns a segment whose numbers are multiples of 16 MiB.
func (s *script) segment() packet.Segment {
	flags := [...]uint8{packet.ACK, packet.SYN, packet.SYN | packet.ACK, packet.FIN | packet.ACK, packet.RST, packet.FIN, 0,
		packet.SYN | packet.FIN, packet.RST | packet.SYN, packet.RST | packet.ACK}
	places := [...]uint32{0, 1, 2, 3, 4, 128, 253, 254, 255}
	return packet.Segment{
		Flags: flags[s.upTo(len(flags))], Seq: places[s.upTo(len(places))] << 24, Ack: places[s.upTo(len(places))] << 24,
	}
}

func FuzzAgainstTwin(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		data := make([]byte, 4000)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const capacity = 512
		if len(data) > 10*capacity { // each insert takes more than ten bytes of data: the table never gets full
			data = data[:10*capacity]
		}
		s := script{data}
		mem, clock := newMem(capacity), &fakeClock{1000}
		// open opens the memory, or converts it first.
		open := func(convert bool) *Table {
			open := Open
			if convert {
				old := mem
				mem = newMem(capacity + s.upTo(100))
				open = func(mem []byte, o Options) (*Table, error) { return Convert(old, mem, o) }
			}
			table, err := open(mem, Options{Clock: clock.read})
			if err != nil {
				t.Fatal(err)
			}
			return table
		}
		table, w := open(false), &twin{now: clock.now, flows: map[packet.Tuple]*twinFlow{}}
		for len(s.data) > 0 {
			w.purge()
			switch s.upTo(12) {
			case 0, 1, 2, 3:
				e := Entry{Orig: s.tuple(), Segment: s.segment(), Backend: uint64(s.upTo(9)), Via: uint64(s.upTo(2)), Kind: uint8(s.upTo(3)),
					Checked: uint32(s.upTo(4)), Owner: uint64(s.upTo(20)), Cluster: uint64(s.upTo(3)), Policy: uint32(s.upTo(5)),
					Counts: [2]Count{{40, 1}, {}}}
				e.Reply = e.Orig.Reverse()
				if s.upTo(2) == 0 {
					e.Reply = s.tuple()
					e.Reply.Proto = e.Orig.Proto
					if e.Orig.Proto == packet.ICMPv4 {
						e.Reply.DstPort = e.Reply.SrcPort
					}
				}
				got := e
				_, res := table.Insert(&got)
				w.insert(t, e, got, res)
			case 4, 5, 6, 7, 8:
				twinLookup(t, table, w, s.tuple(), s.segment(), &s)
			case 9:
				clock.now += [...]uint32{1, 5, 11, 31, 61, 3601, 86401, 0}[s.upTo(8)]
				w.now = clock.now
				table.Sweep()
			case 10:
				// Another process takes over.
				before := table.Stats().Len
				table = open(s.upTo(2) == 1)
				for _, f := range w.flows {
					f.checked = 0
				}
				if st := table.Stats(); st.Kept != before || st.Discarded != 0 || st.Reformatted {
					t.Fatalf("attached: %+v, want %d kept", st, before)
				}
			case 11:
				if n := len(w.seen); n > 0 {
					twinLookup(t, table, w, w.seen[s.upTo(n)], tcp(packet.ACK), &s)
				}
			}
		}
		w.purge()
		advance(table, clock, 0)
		shown := 0
		table.Range(func(e *Entry, _ Info) bool {
			shown++
			f := w.flows[e.Orig]
			if f == nil {
				t.Fatalf("%v is in the table, but not in the twin", e.Orig)
			}
			want := f.e
			want.Segment, want.Checked = packet.Segment{}, f.checked
			if *e != want {
				t.Fatalf("shown %+v, want %+v", *e, want)
			}
			return true
		})
		distinct := map[*twinFlow]bool{}
		for _, f := range w.flows {
			distinct[f] = true
		}
		if n := table.Stats().Len; n != len(distinct) || shown != n {
			t.Fatalf("%d flows, %d shown, want %d", n, shown, len(distinct))
		}
	})
}

// twinLookup compares one lookup with the twin's, and sometimes sets Checked of the flow or deletes it.
func twinLookup(t *testing.T, table *Table, w *twin, tp packet.Tuple, seg packet.Segment, s *script) {
	var hit Hit
	ok := table.Lookup(&tp, seg, &hit)
	f, d, closed, wantOK := w.lookup(tp, seg)
	if ok != wantOK {
		t.Fatalf("lookup %v: %v, want %v", tp, ok, wantOK)
	}
	if !ok {
		return
	}
	to := f.e.Reply.Reverse()
	if d == Reply {
		to = f.e.Orig.Reverse()
	}
	same, checked := to, f.checked
	same.Space = tp.Space
	opens := !closed && d == Original && tp.Proto.Connects() && seg.Flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) == packet.SYN
	if opens {
		checked = 0
	}
	if hit.Dir != d || hit.To != to || hit.Translate != (same != tp) || hit.Backend != f.e.Backend || hit.Via != f.e.Via ||
		hit.Kind != f.e.Kind || hit.Checked != checked || (hit.State == Closed) != closed {
		t.Fatalf("lookup %v by %+v: %+v, want %v of %+v", tp, seg, hit, d, f)
	}
	switch hit.State { // what is stored
	case Accepted:
		hit.State = SynReceived
	case Refused, Abandoned:
		hit.State = Reset
	}
	if opens && hit.State != SynSent || !closed && !opens && timeouts[hit.State] != f.seconds() {
		t.Fatalf("lookup %v by %+v: %v for %d s, want %d s", tp, seg, hit.State, timeouts[hit.State], f.seconds())
	}
	if !closed {
		n := 40 + s.upTo(100)
		table.Count(&hit, n, seg)
		f.learn(d, seg)
		f.e.Counts[d].Packets++
		f.e.Counts[d].Bytes += uint64(n)
	}
	switch s.upTo(6) {
	case 0:
		f.checked = uint32(s.upTo(100))
		table.SetChecked(hit.Ref, f.checked)
	case 1:
		f.e.Via = uint64(s.upTo(256))
		if hit.Ref, ok = table.SetVia(hit.Ref, &f.e.Orig, f.e.Via); !ok {
			t.Fatalf("cannot set %v", f.e.Orig)
		}
	case 2:
		if !table.Delete(hit.Ref, &f.e.Orig) {
			t.Fatalf("cannot delete %v", f.e.Orig)
		}
		w.remove(f)
	}
}
