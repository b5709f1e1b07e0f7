package agent

import (
	"context"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/metrics"
	"tapestry.dev/tapestry/overlay"
)

// sample is what Prometheus is told; false before the first snapshot.
func (a *agent) sample() (metrics.Sample, bool) {
	if a.checkStarted(context.Background()) != nil {
		return metrics.Sample{}, false
	}
	s, err := attacher{a}.Stats(context.Background())
	if err != nil {
		return metrics.Sample{}, false
	}
	np := a.node.HostSockets()
	m := metrics.Sample{
		Verdicts: s.Verdicts, Drops: s.Drops, Link: s.Link, Flows: s.Flows, Taps: s.Taps, FlowsFull: s.FlowsFull,
		Pods: s.Pods, Leases: s.Leases, Resting: s.Resting,
		FlowsCapacity: a.agentConfig.flows, Services: len(a.node.Table().Services()),
		HostSockets: np.Sockets, HostConns: np.Conns, HostSessions: np.Sessions,
		Peers: map[string]int{"up": 0, "quiet": 0, "keyless": 0}, Problems: map[string]int{"error": 0, "warning": 0},
		StateAge: time.Since(a.progress.Updated()), SourceAge: a.source.State().Age,
	}
	for _, p := range a.node.Peers() {
		m.Peers[peerState(&p)]++
	}
	shared, own := a.currentProblems()
	for _, p := range append(shared, own...) {
		m.Problems[string(p.Severity)]++
	}
	return m, true
}

// rejectTime is how long a WireGuard session is used without a new handshake (WireGuard paper, 6.1: Reject-After-Time).
const rejectTime = 180 * time.Second

// peerState tells how it stands with another node: up, quiet or keyless.
func peerState(p *overlay.PeerStatus) string {
	switch {
	case p.PublicKey.IsZero():
		return "keyless"
	case p.HandshakeAge >= 0 && p.HandshakeAge < rejectTime:
		return "up"
	}
	return "quiet"
}
