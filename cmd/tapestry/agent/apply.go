package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/hostport"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/services"
)

// errNotYet: the cluster has nothing that a node could begin with.
var errNotYet = errors.New("no pod can run here yet")

// inForce is what the node was brought to last.
type inForce struct {
	config   node.Config // of the snapshot
	problems []kube.Problem
	// hostPorts are those of the snapshot and of the runtimes; taken are problems with the latter.
	hostPorts []services.HostPort
	taken     []services.Problem
}

// withPods adds the host ports that runtimes asked for to what a snapshot says.
func (f inForce) withPods(p *pods.Registry) inForce {
	f.hostPorts, f.taken = p.HostPorts(f.config.Services.HostPorts)
	return f
}

// bring brings the node to f. What cannot be applied is returned. It is called with a.applying held.
func (a *agent) bring(f inForce) error {
	c := f.config
	c.Services.HostPorts = f.hostPorts
	err := a.node.Set(c)
	if errors.Is(err, node.ErrStartAnew) {
		return err // nothing has changed
	}
	a.inForce = f
	problems := slices.Clone(f.problems)
	for _, p := range f.taken {
		problems = append(problems, kube.Problem{Severity: kube.Warning, Object: objectOf(p.Object), Message: p.Message})
	}
	a.problems.Store(&problems)
	return err
}

// remap serves the host ports that there are now that pods have come or gone.
func (a *agent) remap() {
	a.applying.Lock()
	defer a.applying.Unlock()
	next := a.inForce.withPods(a.pods)
	if slices.Equal(next.hostPorts, a.inForce.hostPorts) && slices.Equal(next.taken, a.inForce.taken) {
		return // Pod objects name the same
	}
	if err := a.bring(next); err != nil {
		a.log.Error("host ports of a pod were not applied", "err", err)
	}
	a.publish(func(*said) {})
}

// apply brings the node to a snapshot of the cluster. It is called by one goroutine. What cannot be applied is returned;
// the rest is. found are problems that the source has with them.
func (a *agent) apply(ctx context.Context, objs kube.Objects, found []kube.Problem, items []keeper.Item) (err error) {
	a.applying.Lock()
	defer a.applying.Unlock()
	var result translate.Result
	end := a.progress.Begin()
	defer func() { end(result.Leaving, err) }()
	mtu := a.underlay(&objs)
	result = a.translator.Translate(objs, translate.Options{Node: a.agentConfig.node, UnderlayMTU: mtu, ExternalIPs: a.externalIPs})
	next := inForce{
		config:   node.Config{Netstack: result.Netstack, Overlay: result.Overlay, Services: result.Services, DNS: result.DNS, Ingress: result.Ingress},
		problems: append(slices.Clone(result.Problems), found...),
	}
	first := a.node == nil
	if first {
		if len(result.Netstack.PodCIDRs) == 0 {
			return fmt.Errorf("%w: the cluster has no Node %s with a podCIDR yet; waiting for it", errNotYet, a.agentConfig.node)
		}
		held := a.held
		held.UnderlayMTU = mtu
		if a.node, err = node.Start(ctx, held, next.config); err != nil {
			return err
		}
		a.attachKept(items) // nothing is read from them yet
	}
	err = a.bring(next.withPods(a.pods))
	if errors.Is(err, node.ErrStartAnew) {
		return err
	}
	a.progress.Triggered(a.translator.Triggers())
	a.publish(func(s *said) { s.objs = &objs })
	if first {
		close(a.started)
	}
	return err
}

// underlay is the MTU of the network between the nodes; 0 when it cannot be found out.
func (a *agent) underlay(objs *kube.Objects) int {
	if a.underlayMTU > 0 {
		return a.underlayMTU
	}
	if a.foundMTU > 0 && kube.Same(a.foundFor.Nodes, objs.Nodes) {
		return a.foundMTU
	}
	a.foundFor = kube.Objects{Nodes: objs.Nodes}
	nodes := translate.Translate(a.foundFor, translate.Options{Node: a.agentConfig.node})
	var err error
	if a.foundMTU, err = tap.MTUOf(nil, nodes.Netstack.NodeAddrs); err != nil {
		a.log.Warn("assuming an underlay of 1500 bytes", "err", err)
	}
	return a.foundMTU
}

// attachKept attaches the TAPs that were there before this agent.
func (a *agent) attachKept(items []keeper.Item) {
	var ofPods []keeper.Item
	for _, it := range items {
		switch {
		case it.Key == hostport.Key:
			if err := a.node.AttachHost(it.Meta, it.File); err != nil {
				a.log.Error("the host's TAP was not attached", "err", err)
				_ = it.File.Close()
			}
		case strings.HasPrefix(it.Key, keeper.ListenPrefix):
			_ = it.File.Close() // Holdings.Listener gets its own
		case strings.HasPrefix(it.Key, pods.KeyPrefix):
			ofPods = append(ofPods, it)
		}
	}
	a.pods.Restore(a.node, ofPods)
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
