package follow

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube"
)

// said is what publish has to remember.
type said struct {
	mu sync.Mutex
	// mu guards the fields below. It also serializes calls of publish, so that the last status published is the
	// present one.
	objs   *kube.Objects // of the last snapshot
	works  bool          // a packet has passed through this node
	reason string        // why no packet passes through; set when that is certain
	own    []kube.Problem
	unfit  string
}

// publish tells the other nodes what they need to know of this node, and the authors of objects about problems.
func (f *Follower) publish(change func(*said)) {
	f.said.mu.Lock()
	defer f.said.mu.Unlock()
	change(&f.said)
	c := &f.node.Config().Netstack
	shared, own := f.Problems()
	_, unfit := f.o.Ailing()
	f.said.own, f.said.unfit = own, unfit
	s := kube.NodeStatus{
		Name: f.o.Node, PublicKey: f.o.Held.Key.Public().String(), Addrs: c.NodeAddrs, Problems: slices.Concat(own, shared),
		Features: f.o.Features, Ready: len(c.PodCIDRs) > 0 && f.said.works && unfit == "",
	}
	switch {
	case len(c.PodCIDRs) == 0:
		s.Reason = "the Node has no podCIDR"
	case !f.said.works:
		s.Reason = f.said.reason
	default:
		s.Reason = unfit
	}
	if len(c.NodeAddrs) > 0 {
		s.Endpoint = netip.AddrPortFrom(c.NodeAddrs[0], f.node.WireGuardPort())
	}
	f.o.Source.Publish(s)
	f.o.Source.Report(f.said.objs, shared, own)
}

// Republish tells what has changed of this node's own problems and in Options.Ailing since that was last told. It may
// only be called after Started is closed.
func (f *Follower) Republish() {
	_, own := f.Problems()
	_, unfit := f.o.Ailing()
	f.said.mu.Lock()
	same := slices.Equal(own, f.said.own) && unfit == f.said.unfit
	f.said.mu.Unlock()
	if !same {
		f.publish(func(*said) {})
	}
}

// Objects returns the last snapshot, or nil before the first.
func (f *Follower) Objects() *kube.Objects {
	f.said.mu.Lock()
	defer f.said.mu.Unlock()
	return f.said.objs
}

// Announce publishes that the node's network works, as soon as a packet has passed through it.
func (f *Follower) Announce(ctx context.Context) error {
	// After a restart of the agent, other nodes still believe that the network works. Announce contradicts this only
	// when it is certain.
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
			f.o.Log.Error("packets do not pass through this node", "err", err)
			f.publish(func(s *said) { s.reason = "packets do not pass through this node: " + err.Error() })
			complained = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Problems returns the problems of the last snapshot, which every agent finds, and the present problems of this node,
// with what ails it first. The caller owns both lists.
func (f *Follower) Problems() (shared, own []kube.Problem) {
	shared = slices.Clone(*f.problems.Load())
	ailing, _ := f.o.Ailing()
	own = slices.Clone(ailing)
	for _, p := range f.node.Problems() {
		severity, list := kube.Error, &own
		if p.Warning {
			severity = kube.Warning
		}
		if p.Shared {
			list = &shared
		}
		told := kube.Problem{Severity: severity, Object: objectOf(p.Object), Message: p.Message}
		if p.Port && told.Object.Kind == "Service" {
			told.Reason = kube.PortNotServed
		}
		*list = append(*list, told)
	}
	return slices.Clip(shared), own
}
