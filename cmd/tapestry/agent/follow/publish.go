package follow

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube"
)

// said is what publish needs to remember.
type said struct {
	mu sync.Mutex
	// mu guards the rest, and has one publish at a time, so that what is said last is what is so.
	objs   *kube.Objects // of the last snapshot
	works  bool          // a packet has come through this node
	reason string        // why none has, once that is certain
}

// publish tells the other nodes what they need to know of this one, and the authors of objects what is wrong with them.
func (f *Follower) publish(change func(*said)) {
	f.said.mu.Lock()
	defer f.said.mu.Unlock()
	change(&f.said)
	c := &f.node.Config().Netstack
	shared, own := f.Problems()
	s := kube.NodeStatus{
		Name: f.o.Node, PublicKey: f.o.Held.Key.Public().String(), Addrs: c.NodeAddrs, Problems: append(shared, own...),
		Features: f.o.Features, Ready: len(c.PodCIDRs) > 0 && f.said.works,
	}
	switch {
	case len(c.PodCIDRs) == 0:
		s.Reason = "the Node has no podCIDR"
	case !f.said.works:
		s.Reason = f.said.reason
	}
	if len(c.NodeAddrs) > 0 {
		s.Endpoint = netip.AddrPortFrom(c.NodeAddrs[0], f.node.WireGuardPort())
	}
	f.o.Source.Publish(s)
	f.o.Source.Report(f.said.objs, shared, own)
}

// Announce says that the node's network works, as soon as a packet has come through it.
func (f *Follower) Announce(ctx context.Context) error {
	// An agent that comes after another says nothing against the node before it is certain.
	const patience, pause, certain = 2 * time.Second, 100 * time.Millisecond, 10 * time.Second
	start, complained := time.Now(), false
	for {
		try, cancel := context.WithTimeout(ctx, patience)
		err := f.node.Probe(try)
		cancel()
		if err == nil {
			f.publish(func(s *said) { s.works = true })
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !complained && time.Since(start) > certain {
			f.o.Log.Error("packets do not come through this node", "err", err)
			f.publish(func(s *said) { s.reason = "packets do not come through this node: " + err.Error() })
			complained = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Problems are those of the last snapshot, which every agent finds, and what is wrong on this node at the moment. Both
// are the caller's.
func (f *Follower) Problems() (shared, own []kube.Problem) {
	shared = slices.Clone(*f.problems.Load())
	for _, p := range f.node.Problems() {
		severity, list := kube.Error, &own
		if p.Warning {
			severity = kube.Warning
		}
		if p.Shared {
			list = &shared
		}
		*list = append(*list, kube.Problem{Severity: severity, Object: objectOf(p.Object), Message: p.Message})
	}
	return slices.Clip(shared), own
}
