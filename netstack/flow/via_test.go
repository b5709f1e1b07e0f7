package flow

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestSetVia: Via changes and nothing else does, also for the next process, and only of the flow that was meant.
func TestSetVia(t *testing.T) {
	mem := make([]byte, Size(10))
	now := uint32(1000)
	o := Options{Clock: func() uint32 { return now }}
	table, err := Open(mem, o)
	if err != nil {
		t.Fatal(err)
	}
	orig := tuple(packet.TCP, "10.0.0.1:999", "10.0.0.2:80")
	e := &Entry{Orig: orig, Reply: tuple(packet.TCP, "10.0.1.1:8080", "10.0.0.1:999"), Backend: 7, Kind: 2, Owner: 5, Policy: 9, Segment: tcp(packet.SYN), Checked: 3}
	ref := mustInsert(t, table, e)
	var hit Hit
	reply := e.Reply
	if !table.Lookup(&reply, tcp(packet.SYN|packet.ACK), &hit) {
		t.Fatal("it is not there")
	}
	table.Count(&hit, 60, packet.Segment{Flags: packet.SYN | packet.ACK, Seq: 5 << 20, Ack: 6 << 20})
	var before, after Entry
	var was, is Info
	table.Range(func(e *Entry, i Info) bool { before, was = *e, i; return true })
	for name, r := range map[string]uint32{"another flow": ref + 1, "an earlier flow": ref ^ 1<<refBits, "no flow": maxSlots - 1} {
		if _, ok := table.SetVia(r, &orig, 88); ok {
			t.Errorf("set by the ref of %s", name)
		}
	}
	if _, ok := table.SetVia(ref, &reply, 88); ok {
		t.Error("set for another tuple")
	}
	now += 2
	next, ok := table.SetVia(ref, &orig, 99)
	if !ok || next == ref {
		t.Fatalf("set: %v, the ref stays: %v", ok, next == ref)
	}
	if _, ok := table.SetVia(ref, &orig, 88); ok {
		t.Error("set by the ref from before")
	}
	for range 2 { // the second time by the next process
		table.Range(func(e *Entry, i Info) bool { after, is = *e, i; return true })
		if after.Via != 99 {
			t.Errorf("via %d", after.Via)
		}
		after.Via, after.Checked, is.Ref, is.Age, is.Idle, is.ExpiresIn = before.Via, before.Checked, was.Ref, was.Age, was.Idle, was.ExpiresIn
		if after != before || is != was {
			t.Errorf("%+v %+v, want %+v %+v", after, is, before, was)
		}
		if !table.Peek(&reply, &hit) || hit.Via != 99 || hit.State != SynReceived {
			t.Errorf("found: %+v", hit)
		}
		// The marks are what they were.
		rst := packet.Segment{Flags: packet.RST, Seq: 40 << 20}
		if table.Lookup(&orig, rst, &hit); hit.State != SynReceived {
			t.Errorf("a reset from nowhere makes it %v", hit.State)
		}
		if table, err = Open(mem, o); err != nil || table.Stats().Kept != 1 {
			t.Fatalf("kept %d, %v", table.Stats().Kept, err)
		}
	}
}
