// Package follow applies every snapshot of the cluster that its source delivers to a node, and publishes the node's
// status to the source. It starts the node with the first snapshot in which the node has a podCIDR.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/announce"
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

// errNotYet means that the cluster has not yet given the node what it needs to start.
var errNotYet = errors.New("no pod can run here yet")

// Source delivers the cluster's objects, and takes the status of this node.
type Source interface {
	// Run calls deliver with every new state of the cluster, until ctx is done. All calls come from one goroutine.
	Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error
	// Publish tells the other nodes what they need to know of this node. It does not block.
	Publish(kube.NodeStatus)
	// Report tells the authors of objects about problems with the objects.
	Report(objs *kube.Objects, shared, own []kube.Problem)
	// Urgent returns a channel that has a value when the next state must not wait until the Follower has rested: a pod
	// of this node that was reached until now terminates. nil is never. The values are as few as such pods.
	Urgent() <-chan struct{}
}

// Options are the settings of a Follower. All are required except UnderlayMTU, ExternalIPs, ClusterCIDRs, Features and
// Ailing.
type Options struct {
	// Node is the node's name.
	Node   string
	Source Source
	// Held is passed to node.Start, with Held.UnderlayMTU filled in.
	Held node.Held
	// Kept are the descriptors that the keeper held when this agent started. The Follower attaches the TAPs among them
	// and closes the other files.
	Kept []keeper.Item
	Pods *pods.Registry
	// UnderlayMTU is the MTU of the network between the nodes in bytes; 0 means the MTU of the interface with the
	// node's address.
	UnderlayMTU int
	// ExternalIPs says whether spec.externalIPs of Services are honoured.
	ExternalIPs bool
	// ClusterCIDRs are the ranges of pods as the operator names them. Those that the host routes into its host TAP need
	// not be among them.
	ClusterCIDRs []netip.Prefix
	// Features are what other nodes are told that they may rely on.
	Features []string
	// Ailing returns what ails the node, and why nothing should be scheduled on it, or "". Republish has to be called
	// now and then, to tell what has changed of that.
	Ailing   func() (problems []kube.Problem, unfit string)
	Progress *health.Progress
	Log      *slog.Logger
}

// Follower keeps a node up to date. Its methods may be called concurrently. Methods that use the node, such as
// Problems, may only be called after Started is closed.
type Follower struct {
	o Options

	// node is set before started is closed, and does not change after that.
	node    *node.Node
	started chan struct{}

	applying sync.Mutex // held by apply and Remap; guards inForce
	inForce  inForce
	// Only apply uses these.
	ranges     *translate.Ranges
	translator translate.Translator
	foundMTU   int          // of the underlay, 0 until it is known
	foundFor   kube.Objects // the Nodes for which foundMTU was found

	problems atomic.Pointer[[]kube.Problem] // of the last snapshot
	plan     atomic.Pointer[announce.Plan]  // of the last snapshot
	said     said
}

// New returns a Follower. It does nothing before Run.
func New(o Options) *Follower {
	return &Follower{o: o, ranges: rangesOf(&o), started: make(chan struct{})}
}

// rangesOf returns the ranges that the operator names, and those that the host routes into its host TAP.
func rangesOf(o *Options) *translate.Ranges {
	r := &translate.Ranges{Pods: o.ClusterCIDRs}
	for _, it := range o.Kept {
		if it.Key != hosttap.Key {
			continue
		}
		// A meta that cannot be read is told where the host TAP is attached.
		if m, err := hosttap.ParseMeta(it.Meta); err == nil {
			*r = r.With(translate.Ranges{Pods: m.Pods, Services: m.Services})
		}
	}
	return r
}

// Started returns a channel that is closed when there is a node and the first snapshot is applied.
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

// Plan returns what is announced to the network outside.
func (f *Follower) Plan() *announce.Plan { return f.plan.Load() }

// Node returns the node.
func (f *Follower) Node() *node.Node { return f.node }

// Drain drains the node, if there is one, while Run goes on.
func (f *Follower) Drain() {
	if f.HasStarted() {
		f.node.Drain()
	}
}

// Close closes the node, if there is one. Run must have returned.
func (f *Follower) Close() {
	if f.node != nil {
		f.node.Close()
	}
}

// Run applies every state of the cluster to the node until ctx is done or the node has to start anew. The error wraps
// node.ErrStartAnew in the second case. Run sends a value to applied after each state, without blocking.
func (f *Follower) Run(ctx context.Context, applied chan<- struct{}) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	waiting := false
	err := f.o.Source.Run(ctx, func(objs kube.Objects, found []kube.Problem) {
		began, running := time.Now(), f.HasStarted()
		err := f.apply(objs, found)
		defer func() {
			if running { // a start takes long, and what follows it is news
				rest(ctx, time.Since(began), f.o.Source.Urgent())
			}
		}()
		switch {
		case errors.Is(err, node.ErrStartAnew):
			stop(err)
		case errors.Is(err, errNotYet):
			if !waiting {
				f.o.Log.Warn("the node cannot start yet", "err", err)
			}
		case err != nil:
			f.o.Log.Error("part of the cluster's state was not applied", "err", err)
		}
		waiting = errors.Is(err, errNotYet)
		select {
		case applied <- struct{}{}:
		default: // a value is waiting already
		}
	})
	if cause := context.Cause(ctx); errors.Is(cause, node.ErrStartAnew) {
		return cause
	}
	return err
}

// inForce is the state that was applied to the node last.
type inForce struct {
	config   node.Config // of the snapshot
	problems []kube.Problem
	// hostPorts are the hostPorts of the snapshot and of the container runtimes. taken are the problems with those of
	// the runtimes.
	hostPorts []services.HostPort
	taken     []services.Problem
}

// withPods returns s with the hostPorts that container runtimes asked for.
func (s inForce) withPods(p *pods.Registry) inForce {
	s.hostPorts, s.taken = p.HostPorts(s.config.Services.HostPorts)
	return s
}

// bring applies s to the node. It returns an error for the parts that cannot be applied. The caller holds f.applying.
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

// Remap applies the hostPorts of the runtimes again. It must be called after pods were attached or detached.
func (f *Follower) Remap() {
	f.applying.Lock()
	defer f.applying.Unlock()
	next := f.inForce.withPods(f.o.Pods)
	if slices.Equal(next.hostPorts, f.inForce.hostPorts) && slices.Equal(next.taken, f.inForce.taken) {
		return // for example because the Pod objects already name the same ports
	}
	if err := f.bring(next); err != nil {
		f.o.Log.Error("some hostPorts of pods were not applied", "err", err)
	}
	f.publish(func(*said) {})
}

// apply applies a snapshot of the cluster to the node. found are the problems that the source has with the objects.
// apply returns an error for the parts that cannot be applied; the other parts take effect. Only one goroutine calls
// it.
func (f *Follower) apply(objs kube.Objects, found []kube.Problem) (err error) {
	f.applying.Lock()
	defer f.applying.Unlock()
	var result translate.Result
	end := f.o.Progress.Begin()
	defer func() { end(result.Leaving, err) }()
	mtu := f.underlay(&objs)
	result = f.translator.Translate(objs, translate.Options{Node: f.o.Node, UnderlayMTU: mtu, ExternalIPs: f.o.ExternalIPs, Ranges: f.ranges, NodePorts: &f.o.Held.NodePorts})
	next := inForce{
		config:   node.Config{Netstack: result.Netstack, Overlay: result.Overlay, Services: result.Services, DNS: result.DNS, Ingress: result.Ingress, Quotas: result.Quotas, Policy: result.Policy, Exits: result.Exits},
		problems: append(slices.Clone(result.Problems), found...),
	}
	first := f.node == nil
	if first {
		if len(result.Netstack.PodCIDRs) == 0 {
			return fmt.Errorf("%w: the cluster has no Node %s with a podCIDR yet; the agent waits for it", errNotYet, f.o.Node)
		}
		held := f.o.Held
		held.UnderlayMTU = mtu
		if f.node, err = node.Start(held, next.config); err != nil {
			return err
		}
		f.attachKept() // the node reads from them only after its first Set
	}
	f.plan.Store(result.Announce)
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

// underlay returns the MTU of the network between the nodes, or 0 if it cannot be found out.
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
		f.o.Log.Warn("cannot find out the MTU of the network between the nodes, so the agent assumes 1500 bytes", "err", err)
	}
	return f.foundMTU
}

// attachKept attaches the TAPs that the keeper held when this agent started.
func (f *Follower) attachKept() {
	var ofPods []keeper.Item
	for _, it := range f.o.Kept {
		switch {
		case it.Key == hosttap.Key:
			if err := f.node.AttachHost(it.Meta, it.File); err != nil {
				_ = it.File.Close() // whoever looks after the node tries again, and tells
			}
		case strings.HasPrefix(it.Key, keeper.ListenPrefix):
			_ = it.File.Close() // Holdings.Listener returns its own copy
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
