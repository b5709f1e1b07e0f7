package agent

import (
	"context"
	"runtime"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/flow"
)

// Stats implements cni.Attacher.
func (t attacher) Stats(context.Context) (cni.Stats, error) {
	a := t.a
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	node, link := a.node.Stats(), a.mesh.Stats()
	s := cni.Stats{
		Goroutines: runtime.NumGoroutine(), HeapBytes: mem.HeapAlloc,
		Flows: map[string]int{}, FlowsFull: a.flows.Stats().Full,
		Taps: map[string]int{}, Verdicts: node.Verdicts, Drops: node.Drops,
		Link: map[string]uint64{
			"sent": link.SentPackets, "sent-partial": link.SentPartial, "received": link.ReceivedPackets, "no-peer": link.DropNoPeer, "no-session": link.DropNoSession,
			"too-big": link.DropTooBig, "spoofed": link.DropSpoofed, "forbidden": link.DropForbidden, "send-errors": link.SendErrors,
		},
	}
	s.Pods, s.Leases, s.Resting = a.pods.Counts()
	a.flows.Range(func(_ *flow.Entry, i flow.Info) bool {
		s.Flows[i.State.String()]++
		return true
	})
	for _, p := range a.node.Ports() {
		s.Taps[p.Offloads]++
	}
	return s, nil
}
