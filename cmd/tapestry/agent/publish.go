package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
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
func (a *agent) publish(change func(*said)) {
	a.said.mu.Lock()
	defer a.said.mu.Unlock()
	change(&a.said)
	c := a.config.Load()
	s := kube.NodeStatus{
		Name: a.agentConfig.node, PublicKey: a.key.Public().String(), Addrs: c.NodeAddrs, Problems: a.currentProblems(),
		Features: a.offloads.features(), Ready: len(c.PodCIDRs) > 0 && a.said.works,
	}
	switch {
	case len(c.PodCIDRs) == 0:
		s.Reason = "the Node has no podCIDR"
	case !a.said.works:
		s.Reason = a.said.reason
	}
	if len(c.NodeAddrs) > 0 {
		s.Endpoint = netip.AddrPortFrom(c.NodeAddrs[0], a.mesh.Port())
	}
	a.source.Publish(s)
	a.source.Report(a.said.objs, *a.problems.Load(), a.ownProblems())
}

// announce says that the node's network works, as soon as a packet has come through it.
func (a *agent) announce(ctx context.Context) error {
	// An agent that comes after another says nothing against the node before it is certain.
	const patience, pause, certain = 2 * time.Second, 100 * time.Millisecond, 10 * time.Second
	start, complained := time.Now(), false
	for {
		try, cancel := context.WithTimeout(ctx, patience)
		err := a.checkPackets(try)
		cancel()
		if err == nil {
			a.publish(func(s *said) { s.works = true })
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !complained && time.Since(start) > certain {
			a.log.Error("packets do not come through this node", "err", err)
			a.publish(func(s *said) { s.reason = "packets do not come through this node: " + err.Error() })
			complained = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// currentProblems are those of the last snapshot, and what is wrong on this node at the moment.
func (a *agent) currentProblems() []kube.Problem {
	return append(slices.Clone(*a.problems.Load()), a.ownProblems()...)
}

// ownProblems are those that no other node has: node ports that cannot be had, pods with addresses of another time.
func (a *agent) ownProblems() []kube.Problem {
	var list []kube.Problem
	for _, p := range append(a.nodePorts.Problems(), a.balancers.Problems()...) {
		list = append(list, kube.Problem{Severity: kube.Error, Object: objectOf(p.Object), Message: p.Message})
	}
	c := a.config.Load()
	for _, p := range a.node.Ports() {
		if p.Name == hostKey {
			continue
		}
		for _, addr := range p.Addrs {
			if !inside(c.PodCIDRs, addr) {
				list = append(list, kube.Problem{
					Severity: kube.Warning, Object: objectOf("Pod " + p.Name),
					Message: fmt.Sprintf("its address %s is from before the node's podCIDRs became %v, and is reached on this node alone: restart the pod", addr, c.PodCIDRs),
				})
			}
		}
	}
	return list
}

func inside(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// errStartAnew ends an agent that cannot go on as it began. The next one finds the pods and flows with the keeper, so that
// nothing translated is cut.
var errStartAnew = errors.New("start the agent anew")

// otherRanges gives an error when the node's pod ranges are not those that the gateway and the tunnel were made for.
func otherRanges(before, now *netstack.Config) error {
	if before == nil || len(now.PodCIDRs) == 0 || slices.Equal(before.PodCIDRs, now.PodCIDRs) {
		return nil
	}
	return fmt.Errorf("the pod ranges of Node %s are %v and were %v: %w; its pods keep their addresses until they are restarted, and are reached on this node alone",
		now.Node, now.PodCIDRs, before.PodCIDRs, errStartAnew)
}

// objectOf parses "Kind namespace/name".
func objectOf(s string) kube.Ref {
	kind, name, _ := strings.Cut(s, " ")
	r := kube.Ref{Kind: kind, Name: name}
	if ns, n, ok := strings.Cut(name, "/"); ok {
		r.Namespace, r.Name = ns, n
	}
	return r
}
