package observe

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/packet"
)

// tuple returns the TCP tuple between two addresses with ports.
func tuple(src, dst string) packet.Tuple {
	s, d := packet.EndpointFrom(netip.MustParseAddrPort(src)), packet.EndpointFrom(netip.MustParseAddrPort(dst))
	return packet.Tuple{Src: s.Addr, Dst: d.Addr, SrcPort: s.Port, DstPort: d.Port, Proto: packet.TCP}
}

func read(t *testing.T, log *flowlog.Reader) flowlog.Record {
	t.Helper()
	var r flowlog.Record
	if !log.Next(&r) {
		t.Fatal("there is no record")
	}
	return r
}

// A connection through a Service, from its first packet to its end.
func TestConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := flowlog.New(16)
		p, reader := New(log, 8), log.Read(0)
		time.Sleep(time.Second)
		f := &netstack.Flow{
			Orig: tuple("10.244.1.10:1000", "10.96.0.1:80"), To: tuple("10.244.1.10:1000", "10.244.2.11:8080"), Backend: 7,
			From: netstack.End{Kind: netstack.Pod, Attachment: "shop/web"}, Toward: netstack.End{Kind: netstack.OtherNode, Peer: 2},
		}
		const ref = 5<<24 | 3
		p.Begun(f, ref, 99)
		time.Sleep(1500 * time.Microsecond)
		p.Answered(ref)
		time.Sleep(time.Minute)
		p.Answered(ref) // again: a connection that was reset in vain
		e := flow.Entry{Orig: f.Orig, Reply: f.To.Reverse(), Backend: 7, Counts: [2]flow.Count{{Bytes: 100, Packets: 2}, {Bytes: 5000, Packets: 3}}}
		p.Ended(e, flow.Info{Ref: ref, State: flow.TimeWait, Age: 60})
		want := flowlog.Record{
			Time: time.Second, Event: flowlog.Begun, Rule: 99, Backend: 7, Proto: packet.TCP, From: flowlog.Pod, Toward: flowlog.OtherNode,
			Src: endpoint(&f.Orig.Src, 1000), Dst: endpoint(&f.Orig.Dst, 80), ToSrc: endpoint(&f.To.Src, 1000), ToDst: endpoint(&f.To.Dst, 8080),
		}
		if got := read(t, reader); got != want || !got.Translated() {
			t.Errorf("begun:\n%+v, want\n%+v", got, want)
		}
		want.Time, want.Event, want.Rule, want.From, want.Toward = want.Time+time.Minute+1500*time.Microsecond, flowlog.Ended, 0, 0, 0
		want.State, want.Wait, want.Duration = flow.TimeWait, 1500, time.Minute+1500*time.Microsecond
		want.Bytes, want.Packets = [2]uint64{100, 5000}, [2]uint64{2, 3}
		if got := read(t, reader); got != want {
			t.Errorf("ended:\n%+v, want\n%+v", got, want)
		}
	})
}

// What ends without having begun in this agent, or under another ref, is not mistaken for what did.
func TestFlowsOfOthers(t *testing.T) {
	log := flowlog.New(16)
	p, reader := New(log, 8), log.Read(0)
	e := flow.Entry{Orig: tuple("10.244.1.10:1000", "10.244.1.11:80")}
	e.Reply = e.Orig.Reverse()
	end := func(ref uint32) flowlog.Record {
		p.Ended(e, flow.Info{Ref: ref, State: flow.Established, Age: 5000})
		return read(t, reader)
	}
	p.Answered(1<<24 | 3)
	if r := end(1<<24 | 3); r.Flags != flowlog.Earlier || r.Wait != 0 || r.Duration != 5000*time.Second {
		t.Errorf("of an earlier agent: %+v", r)
	}
	p.Begun(&netstack.Flow{Orig: e.Orig, To: e.Orig}, 2<<24|3, 0)
	read(t, reader)
	p.Answered(3<<24 | 3)
	if r := end(3<<24 | 3); r.Flags != 0 || r.Wait != 0 || r.Duration != 5000*time.Second {
		t.Errorf("under another ref: %+v", r)
	}
	p.Answered(2<<24 | 3)
	if r := end(2<<24 | 3); r.Flags != 0 || r.Wait == 0 || r.Duration != 5000*time.Second {
		t.Errorf("an old one: %+v", r)
	}
}

func TestRefusalsAndDrops(t *testing.T) {
	log := flowlog.New(1024)
	p, reader := New(log, 8), log.Read(0)
	at := tuple("198.51.100.7:1000", "10.244.1.11:80")
	f := &netstack.Flow{Orig: at, To: at, From: netstack.End{Kind: netstack.Outside, Peer: 9}}
	for _, c := range []struct {
		tell func()
		want flowlog.Record
	}{
		{func() { p.Refused(f, netstack.Refusal{Why: netstack.Denied, Rule: 4, Told: true}) },
			flowlog.Record{Event: flowlog.Refused, Reason: uint8(netstack.Denied), Rule: 4, Peer: 9, From: flowlog.Outside, Toward: flowlog.Nobody}},
		{func() { p.Refused(f, netstack.Refusal{Why: netstack.LocalPolicy}) },
			flowlog.Record{Event: flowlog.Dropped, Reason: uint8(netstack.LocalPolicy), Peer: 9, From: flowlog.Outside, Toward: flowlog.Nobody}},
		{func() { p.Dropped(&at, netstack.Spoofed, 1) }, flowlog.Record{Event: flowlog.Dropped, Reason: uint8(netstack.Spoofed)}},
	} {
		c.tell()
		got := read(t, reader)
		c.want.Time = got.Time
		tuples(&c.want, &at, &at)
		if got != c.want {
			t.Errorf("%+v, want\n%+v", got, c.want)
		}
	}
	p.Dropped(&at, netstack.Multicast, 1)
	p.Dropped(&at, netstack.LinkOnly, 1)
	if r := (flowlog.Record{}); reader.Next(&r) {
		t.Errorf("what nobody forwards has a record: %+v", r)
	}
}

// One sender who provokes many drops does not push all others' records out.
func TestFloodOfDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := flowlog.New(4096)
		p, reader := New(log, 8), log.Read(0)
		at := tuple("198.51.100.7:1000", "10.244.1.11:80")
		count := func(owner uint64, n int) (records int) {
			for range n {
				p.Dropped(&at, netstack.Spoofed, owner)
			}
			for r := (flowlog.Record{}); reader.Next(&r); records++ {
			}
			return records
		}
		if n := count(1, 1000); n != 50 || p.Spared() != 950 {
			t.Errorf("%d records of 1000 drops at once, %d spared", n, p.Spared())
		}
		time.Sleep(100 * time.Millisecond)
		if n := count(1, 1000); n != 10 {
			t.Errorf("%d records after a tenth of a second, want 10", n)
		}
	})
}

func TestNothingIsAllocated(t *testing.T) {
	p := New(flowlog.New(16), 8)
	at := tuple("10.244.1.10:1000", "10.244.1.11:80")
	f := &netstack.Flow{Orig: at, To: at}
	e := flow.Entry{Orig: at, Reply: at.Reverse()}
	if n := testing.AllocsPerRun(100, func() {
		p.Begun(f, 3, 0)
		p.Answered(3)
		p.Ended(e, flow.Info{Ref: 3})
		p.Refused(f, netstack.Refusal{Why: netstack.Denied})
		p.Dropped(&at, netstack.Spoofed, 1)
	}); n != 0 {
		t.Errorf("a connection allocates %v times", n)
	}
}

// BenchmarkConnection is all that is told of one connection.
func BenchmarkConnection(b *testing.B) {
	p := New(flowlog.New(0), 1024)
	at := tuple("10.244.1.10:1000", "10.244.1.11:80")
	f := &netstack.Flow{Orig: at, To: at}
	e := flow.Entry{Orig: at, Reply: at.Reverse()}
	for i := uint32(0); b.Loop(); i++ {
		ref := 1<<24 | i%1024
		p.Begun(f, ref, 0)
		p.Answered(ref)
		p.Ended(e, flow.Info{Ref: ref})
	}
}
