// Package expose looks whether a node's kernel brings its host TAP what clients outside send to addresses of load
// balancers, and carries on what pods send from their own addresses and from egress addresses. It only looks, and
// tells: whether a machine forwards, and what it routes where, is its operator's to say.
//
// A node is in one of the tiers of docs/loadbalancer.md. Which one follows from what 'tapestry host-tap' left with the
// keeper and from the announcers that work, and nothing else says it.
package expose

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/cmd/tapestry/agent/follow"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
)

// lookEvery is the time between two looks. A look asks the kernel for one route per address.
const lookEvery = 5 * time.Second

// Options are the settings of a Watcher. All but Routed are required.
type Options struct {
	// Node is the node's name.
	Node     string
	Follower *follow.Follower
	// Keeper says which ranges are routed into the host TAP.
	Keeper interface {
		Get(key string) (keeper.Item, error)
	}
	// Routed are the ranges outside that pods reach from their own addresses.
	Routed []netip.Prefix
	Log    *slog.Logger
}

// Watcher looks again and again. Its methods are safe for concurrent use.
type Watcher struct {
	o Options

	mu       sync.Mutex // guards what follows
	ranges   []netip.Prefix
	problems []kube.Problem
}

// New returns a Watcher. It knows nothing before Run.
func New(o Options) *Watcher { return &Watcher{o: o} }

// Run looks until ctx is done, and has the Follower tell what changed.
func (w *Watcher) Run(ctx context.Context) {
	select {
	case <-w.o.Follower.Started():
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if w.look() {
			w.o.Follower.Republish()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look looks once, and reports whether there are other problems than before.
func (w *Watcher) look() (changed bool) {
	node := w.o.Follower.Node()
	f := facts{node: w.o.Node, ranges: w.routed()}
	for _, r := range w.o.Routed {
		if node.HasHostTAP(r.Addr()) { // the node tells where there is none
			f.routed = append(f.routed, r)
		}
	}
	for _, l := range w.o.Follower.Plan().Links {
		if l.Egress != "" && slices.Contains(l.Ranked, w.o.Node) {
			f.egress = append(f.egress, gateway{addr: l.Addr, of: l.Egress, bare: !node.HasHostTAP(l.Addr)})
		}
	}
	var list []kube.Problem
	if len(f.ranges)+len(f.routed)+len(f.egress) > 0 {
		if len(f.ranges) > 0 {
			f.exposed = node.Exposed()
		}
		if err := f.ask(node.Config().Netstack.NodeAddrs); err != nil {
			w.o.Log.Warn("whether the host's kernel forwards for the host TAP is not known", "err", err)
			return false
		}
		list = faults(&f)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range list {
		if !slices.Contains(w.problems, p) {
			w.o.Log.Warn("the host's kernel does not forward as it should", "object", p.Object.String(), "err", p.Message)
		}
	}
	changed = !slices.Equal(w.problems, list)
	w.ranges, w.problems = f.ranges, list
	return changed
}

// routed returns the ranges of load balancers that 'tapestry host-tap' routed into the host TAP. The step may have run
// again since the agent started.
func (w *Watcher) routed() []netip.Prefix {
	it, err := w.o.Keeper.Get(hosttap.Key)
	if err != nil {
		return nil
	}
	_ = it.File.Close()
	m, err := hosttap.ParseMeta(it.Meta)
	if err != nil {
		return nil
	}
	return m.LoadBalancers
}

// ask asks the kernel of this process's namespace for the facts.
func (f *facts) ask(nodeAddrs []netip.Addr) error {
	var addrs []netip.Addr
	for _, r := range f.routed {
		addrs = append(addrs, r.Addr())
	}
	for _, s := range f.exposed {
		addrs = append(addrs, s.Addrs...)
	}
	for _, g := range f.egress {
		addrs = append(addrs, g.addr)
	}
	ways, err := tap.WaysTo(nil, addrs)
	if err != nil {
		return err
	}
	f.ways = make(map[netip.Addr]tap.Way, len(addrs))
	for i, a := range addrs {
		f.ways[a] = ways[i]
	}
	links, err := tap.LinksWith(nil, nodeAddrs)
	if err != nil {
		return err
	}
	links = append(links, hosttap.Name)
	if f.off4, err = tap.NotForwarding(nil, true, links); err != nil {
		return err
	}
	f.off6, err = tap.NotForwarding(nil, false, links)
	return err
}

// Problems returns why clients outside do not reach addresses of load balancers by this node, and pods nothing outside.
func (w *Watcher) Problems() []kube.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.problems)
}

// Tier says how clients outside reach load balancers by this node, beside which these announcers work.
func (w *Watcher) Tier(working []announcing.Kind) localapi.LoadBalancers {
	w.mu.Lock()
	ranges := w.ranges
	w.mu.Unlock()
	return tierOf(ranges, working)
}

// tierOf returns the tier of a node that routes these ranges into its host TAP. What an announcer brings to a node
// without ranges goes no further, so such a node is in the first tier whatever works beside it.
func tierOf(ranges []netip.Prefix, working []announcing.Kind) localapi.LoadBalancers {
	b := localapi.LoadBalancers{Tier: localapi.HostSockets, Ranges: ranges}
	for _, kind := range working {
		b.Announcers = append(b.Announcers, string(kind))
	}
	if len(ranges) > 0 {
		b.Tier = localapi.HostTAP
		if slices.Contains(working, announcing.L2) {
			b.Tier = localapi.Announced
		}
	}
	return b
}
