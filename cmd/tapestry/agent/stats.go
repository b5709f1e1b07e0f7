package agent

import (
	"context"
	"os"
	"runtime"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/flow"
)

// attacher is what the agent's socket does besides what pods does.
type attacher struct{ a *agent }

var _ cni.Attacher = attacher{}

// Add implements cni.Attacher.
func (t attacher) Add(_ context.Context, pod cni.Pod, f *os.File) error { return t.a.pods.Add(pod, f) }

// Del implements cni.Attacher.
func (t attacher) Del(_ context.Context, pod cni.Pod) error { return t.a.pods.Del(pod) }

// Status implements cni.Attacher.
func (t attacher) Status(context.Context) (cni.Status, error) {
	s := cni.Status{Ready: true, Node: t.a.agentConfig.node, PublicKey: t.a.held.Key.Public().String()}
	shared, own := t.a.currentProblems()
	for _, problem := range append(shared, own...) {
		s.Problems = append(s.Problems, problem.String())
	}
	return s, nil
}

// Stats implements cni.Attacher.
func (t attacher) Stats(context.Context) (cni.Stats, error) {
	a := t.a
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	node, link := a.node.Packets(), a.node.Tunnel()
	s := cni.Stats{
		Goroutines: runtime.NumGoroutine(), HeapBytes: mem.HeapAlloc,
		Flows: map[string]int{}, FlowsFull: a.held.Flows.Stats().Full,
		Taps: map[string]int{}, Verdicts: node.Verdicts, Drops: node.Drops,
		Link: map[string]uint64{
			"sent": link.SentPackets, "sent-partial": link.SentPartial, "received": link.ReceivedPackets, "no-peer": link.DropNoPeer, "no-session": link.DropNoSession,
			"too-big": link.DropTooBig, "spoofed": link.DropSpoofed, "forbidden": link.DropForbidden, "send-errors": link.SendErrors,
		},
	}
	s.Pods, s.Leases, s.Resting = a.pods.Counts()
	a.held.Flows.Range(func(_ *flow.Entry, i flow.Info) bool {
		s.Flows[i.State.String()]++
		return true
	})
	for _, p := range a.node.Ports() {
		s.Taps[p.Offloads]++
	}
	return s, nil
}
