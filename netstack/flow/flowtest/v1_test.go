package flowtest_test

import (
	"testing"
	"unsafe"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flow/flowtest"
	"tapestry.dev/tapestry/netstack/packet"
)

func memory(size int) []byte {
	words := make([]uint64, (size+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size)
}

// TestWriteV1: package flow takes over what WriteV1 writes as memory of version 1.
func TestWriteV1(t *testing.T) {
	const flows = 500
	table, err := flow.Open(memory(flow.Size(1000)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[packet.Tuple]flow.Entry{}
	var hit flow.Hit
	for n := range flows {
		orig := packet.Tuple{Proto: packet.TCP, Src: packet.Addr{15: 1}, Dst: packet.Addr{15: 2}, SrcPort: uint16(1024 + n), DstPort: 80, Space: uint32(n % 2)}
		if n%3 == 0 {
			orig.Proto = packet.UDP
		}
		e := flow.Entry{Orig: orig, Reply: orig.Reverse(), Backend: uint64(n), Via: uint64(n % 5), Kind: uint8(n), Segment: packet.Segment{Flags: packet.SYN}}
		e.Reply.Space, e.Reply.Src[15] = 0, byte(2+n%2)
		if _, res := table.Insert(&e); res != flow.Inserted {
			t.Fatal(res)
		}
		table.Lookup(&e.Reply, packet.Segment{Flags: packet.SYN | packet.ACK}, &hit)
		table.Lookup(&e.Orig, packet.Segment{Flags: packet.ACK}, &hit)
		e.Segment = packet.Segment{}
		want[orig] = e
	}
	unanswered := flow.Entry{Orig: packet.Tuple{Proto: packet.UDP, SrcPort: 9}, Reply: packet.Tuple{Proto: packet.UDP, DstPort: 9}}
	table.Insert(&unanswered)

	mem := memory(flowtest.SizeV1(1000))
	if n := flowtest.WriteV1(mem, 1000, table); n != flows {
		t.Fatalf("%d flows were written, want %d", n, flows)
	}
	if flow.Serves(mem, 500) {
		t.Error("Serves returns true for memory of version 1")
	}
	again, err := flow.Convert(mem, memory(flow.Size(1000)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s := again.Stats(); s.Kept != flows || s.Discarded != 0 || s.Reformatted {
		t.Fatalf("%+v", s)
	}
	again.Range(func(e *flow.Entry, i flow.Info) bool {
		w := want[e.Orig]
		if *e != w || i.State != flow.Established && i.State != flow.Replied {
			t.Errorf("%v: got %+v, want %+v", i.State, *e, w)
		}
		delete(want, e.Orig)
		return true
	})
	if len(want) != 0 {
		t.Errorf("%d flows are missing", len(want))
	}
	if n := flowtest.WriteV1(memory(flowtest.SizeV1(7)), 7, table); n != 7 {
		t.Errorf("%d flows were written where 7 fit", n)
	}
}
