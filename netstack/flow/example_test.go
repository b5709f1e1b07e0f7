package flow_test

import (
	"fmt"
	"net/netip"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

func Example() {
	mem := make([]byte, flow.Size(1000)) // with keeper.Map of a keeper.NewMemory the flows survive a restart
	table, err := flow.Open(mem, flow.Options{Capacity: 1000})
	if err != nil {
		panic(err)
	}
	endpoint := func(s string) packet.Endpoint { return packet.EndpointFrom(netip.MustParseAddrPort(s)) }
	client, service, backend := endpoint("10.244.0.2:40000"), endpoint("10.96.0.10:53"), endpoint("10.244.1.7:5353")
	orig := packet.Tuple{Proto: packet.UDP, Src: client.Addr, SrcPort: client.Port, Dst: service.Addr, DstPort: service.Port}

	var hit flow.Hit
	if !table.Lookup(&orig, packet.Segment{}, &hit) {
		reply := orig.Reverse()
		reply.Src, reply.SrcPort = backend.Addr, backend.Port
		_, res := table.Insert(&flow.Entry{Orig: orig, Reply: reply, Backend: 1})
		fmt.Println(res)
	}
	table.Lookup(&orig, packet.Segment{}, &hit)
	fmt.Println(hit.Dir == flow.Original, hit.Translate, hit.To.Dst, hit.To.DstPort)
	// Output:
	// inserted
	// true true 10.244.1.7 5353
}
