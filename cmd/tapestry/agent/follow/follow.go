// Package follow brings a node to every snapshot of the cluster that its source delivers, and tells the source what
// the node says of itself. The node is started with the first snapshot that has a podCIDR for it.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/cmd/tapestry/health"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/services"
)

// errNotYet: the cluster has nothing that a node could begin with.
var errNotYet = errors.New("no pod can run here yet")

// Source is where the cluster's objects come from, and where it is told what this node says of itself.
type Source interface {
	// Run calls deliver with every new state of the cluster, from one goroutine, until ctx is done.
	Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error
	// Publish tells the other nodes what they need to know of this one. It does not wait for them.
	Publish(kube.NodeStatus)
	// Report tells the authors of objects what is wrong with them.
	Report(objs *kube.Objects, shared, own []kube.Problem)
}

// Options are what a Follower needs; all are required but UnderlayMTU, ExternalIPs and Features.
type Options struct {
	// Node is the node's name.
	Node   string
	Source Source
	// Held is what the node is started on, but for Held.UnderlayMTU.
	Held node.Held
	// Kept are the descriptors that the keeper had when this agent began. TAPs among them are attached, and the other
	// files closed.
	Kept []keeper.Item
	Pods *pods.Registry
	// UnderlayMTU in bytes; 0: that of the interface with the node's address.
	UnderlayMTU int
	// ExternalIPs has spec.externalIPs of Services honoured.
	ExternalIPs bool
	// Features are what the other nodes are told that they may count on.
	Features []string
	Progress *health.Progress
	Log      *slog.Logger
}

// Follower keeps a node up to date. Its methods may be called concurrently; those that tell of the node, once Started
// is closed.
type Follower struct {
	o Options

	// node is there once started is closed, and not changed after.
	node    *node.Node
	started chan struct{}

	applying sync.Mutex // held by apply and Remap; guards inForce
	inForce  inForce
	// Used by apply alone.
	translator translate.Translator
	foundMTU   int          // of the underlay, 0 until it is known
	foundFor   kube.Objects // the Nodes there were

	problems atomic.Pointer[[]kube.Problem] // of the last snapshot
	said     said
}

// New makes a Follower, which does nothing before Run.
func New(o Options) *Follower { return &Follower{o: o, started: make(chan struct{})} }

// Started is closed when there is a node, and the first snapshot is in force.
func (f *Follower) Started() <-chan struct{} { return f.started }

// HasStarted reports whether Started is closed.
func (f *Follower) HasStarted() bool {
	select {
	case <-f.started:
		return true
	default:
		return false
	}
}

// Node is the node.
func (f *Follower) Node() *node.Node { return f.node }

// Close closes the node, if there is one. Run must have returned.
func (f *Follower) Close() {
	if f.node != nil {
		f.node.Close()
	}
}

// Run brings the node to every state of the cluster that comes, until ctx is done or the node has to begin anew: the
// error wraps node.ErrStartAnew then. applied gets a value after each.
func (f *Follower) Run(ctx context.Context, applied chan<- struct{}) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	waiting := false
	err := f.o.Source.Run(ctx, func(objs kube.Objects, found []kube.Problem) {
		err := f.apply(ctx, objs, found)
		switch {
		case errors.Is(err, node.ErrStartAnew):
			stop(err)
		case errors.Is(err, errNotYet):
			if !waiting {
				f.o.Log.Warn("the node is not started", "err", err)
			}
		case err != nil:
			f.o.Log.Error("the cluster's state was not applied whole", "err", err)
		}
		waiting = errors.Is(err, errNotYet)
		select {
		case applied <- struct{}{}:
		default: // there is one already
		}
	})
	if cause := context.Cause(ctx); errors.Is(cause, node.ErrStartAnew) {
		return cause
	}
	return err
}

// inForce is what the node was brought to last.
type inForce struct {
	config   node.Config // of the snapshot
	problems []kube.Problem
	// hostPorts are those of the snapshot and of the runtimes; taken are problems with the latter.
	hostPorts []services.HostPort
	taken     []services.Problem
}

// withPods adds the hostPorts that runtimes asked for to what a snapshot says.
func (s inForce) withPods(p *pods.Registry) inForce {
	s.hostPorts, s.taken = p.HostPorts(s.config.Services.HostPorts)
	return s
}

// bring brings the node to s. What cannot be applied is returned. It is called with f.applying held.
func (f *Follower) bring(s inForce) error {
	c := s.config
	c.Services.HostPorts = s.hostPorts
	err := f.node.Set(c)
	if errors.Is(err, node.ErrStartAnew) {
		return err // nothing has changed
	}
	f.inForce = s
	problems := slices.Clone(s.problems)
	for _, p := range s.taken {
		problems = append(problems, kube.Problem{Severity: kube.Warning, Object: objectOf(p.Object), Message: p.Message})
	}
	f.problems.Store(&problems)
	return err
}

// Remap serves the hostPorts that there are now that pods have come or gone.
func (f *Follower) Remap() {
	f.applying.Lock()
	defer f.applying.Unlock()
	next := f.inForce.withPods(f.o.Pods)
	if slices.Equal(next.hostPorts, f.inForce.hostPorts) && slices.Equal(next.taken, f.inForce.taken) {
		return // Pod objects name the same
	}
	if err := f.bring(next); err != nil {
		f.o.Log.Error("hostPorts of a pod were not applied", "err", err)
	}
	f.publish(func(*said) {})
}

// apply brings the node to a snapshot of the cluster. It is called by one goroutine. What cannot be applied is
// returned; the rest is. found are problems that the source has with them.
func (f *Follower) apply(ctx context.Context, objs kube.Objects, found []kube.Problem) (err error) {
	f.applying.Lock()
	defer f.applying.Unlock()
	var result translate.Result
	end := f.o.Progress.Begin()
	defer func() { end(result.Leaving, err) }()
	mtu := f.underlay(&objs)
	result = f.translator.Translate(objs, translate.Options{Node: f.o.Node, UnderlayMTU: mtu, ExternalIPs: f.o.ExternalIPs})
	next := inForce{
		config:   node.Config{Netstack: result.Netstack, Overlay: result.Overlay, Services: result.Services, DNS: result.DNS, Ingress: result.Ingress},
		problems: append(slices.Clone(result.Problems), found...),
	}
	first := f.node == nil
	if first {
		if len(result.Netstack.PodCIDRs) == 0 {
			return fmt.Errorf("%w: the cluster has no Node %s with a podCIDR yet; waiting for it", errNotYet, f.o.Node)
		}
		held := f.o.Held
		held.UnderlayMTU = mtu
		if f.node, err = node.Start(ctx, held, next.config); err != nil {
			return err
		}
		f.attachKept() // nothing is read from them yet
	}
	err = f.bring(next.withPods(f.o.Pods))
	if errors.Is(err, node.ErrStartAnew) {
		return err
	}
	f.o.Progress.Triggered(f.translator.Triggers())
	f.publish(func(s *said) { s.objs = &objs })
	if first {
		close(f.started)
	}
	return err
}

// underlay is the MTU of the network between the nodes; 0 when it cannot be found out.
func (f *Follower) underlay(objs *kube.Objects) int {
	if f.o.UnderlayMTU > 0 {
		return f.o.UnderlayMTU
	}
	if f.foundMTU > 0 && kube.Same(f.foundFor.Nodes, objs.Nodes) {
		return f.foundMTU
	}
	f.foundFor = kube.Objects{Nodes: objs.Nodes}
	nodes := translate.Translate(f.foundFor, translate.Options{Node: f.o.Node})
	var err error
	if f.foundMTU, err = tap.MTUOf(nil, nodes.Netstack.NodeAddrs); err != nil {
		f.o.Log.Warn("assuming an underlay of 1500 bytes", "err", err)
	}
	return f.foundMTU
}

// attachKept attaches the TAPs that were there before this agent.
func (f *Follower) attachKept() {
	var ofPods []keeper.Item
	for _, it := range f.o.Kept {
		switch {
		case it.Key == hosttap.Key:
			if err := f.node.AttachHost(it.Meta, it.File); err != nil {
				f.o.Log.Error("the host's TAP was not attached", "err", err)
				_ = it.File.Close()
			}
		case strings.HasPrefix(it.Key, keeper.ListenPrefix):
			_ = it.File.Close() // Holdings.Listener gets its own
		case strings.HasPrefix(it.Key, pods.KeyPrefix):
			ofPods = append(ofPods, it)
		}
	}
	f.o.Pods.Restore(f.node, ofPods)
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
