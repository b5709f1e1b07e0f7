package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab/plan"
	"tapestry.dev/tapestry/test/lab/process"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/shim"
	"tapestry.dev/tapestry/test/lab/underlay"
)

// How long a keeper may take to answer, how often it is asked, and after how long a run it counts as having worked.
const (
	keeperTime = 10 * time.Second
	keeperTry  = 2 * time.Millisecond
	keeperLife = time.Second
)

// node is a running node. Like a node of a cluster it runs the product's programs: a keeper, a step with NET_ADMIN that
// makes the host TAP, and an agent without any capability.
type node struct {
	plan.Node
	ns     *tap.Namespace
	dir    string
	place  process.Place
	keeper *process.Daemon // nil for an external node
	agent  *agent          // nil for an external node

	ranges translate.Ranges // routed through the host TAP
	mtu    int              // of pods, when the node was made
}

// newNode makes the node's namespace. Nothing runs in it yet.
func (l *lab) newNode(n plan.Node, podMTU int) (*node, error) {
	ns, err := l.underlay.Add(n.Name, n.Addrs)
	if err != nil {
		return nil, fmt.Errorf("make node %s: %w", n.Name, err)
	}
	out := &node{Node: n, ns: ns, dir: rpc.NodeDir(l.cfg.Dir, n.Name), mtu: podMTU}
	if out.place, err = l.nodePlace(n.Name, ns, out.dir); err != nil {
		out.close(l)
		return nil, fmt.Errorf("make node %s: %w", n.Name, err)
	}
	if len(l.cfg.LoadBalancers) > 0 {
		if err := errors.Join(tap.SetSysctl(ns, "net.ipv4.ip_forward", "1"), tap.SetSysctl(ns, "net.ipv6.conf.all.forwarding", "1")); err != nil {
			out.close(l)
			return nil, fmt.Errorf("make node %s: %w", n.Name, err)
		}
	}
	if !n.External {
		out.keeper, out.agent = out.newKeeper(l), newAgent(l, out)
	}
	return out, nil
}

// prepare starts the keeper and makes the host TAP, so that the agent can start.
func (n *node) prepare(ctx context.Context, l *lab, ranges translate.Ranges) error {
	if n.External {
		return nil
	}
	n.keeper.Run()
	if err := n.awaitKeeper(ctx, l); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return n.route(l, ranges)
}

// nodePlace returns the place of the processes in a node's or the outside's namespace. They resolve names with the
// outside resolvers.
func (l *lab) nodePlace(name string, ns *tap.Namespace, dir string) (process.Place, error) {
	var resolv string
	for _, a := range underlay.Resolvers() {
		resolv += "nameserver " + a.String() + "\n"
	}
	return l.place(ns, dir, files{hostname: name, resolv: resolv, hosts: "127.0.0.1\tlocalhost " + name + "\n::1\tlocalhost " + name + "\n"})
}

func (n *node) socket(name string) string { return n.dir + "/" + name + ".sock" }

// daemon returns a process of the node that needs no capability. It completes o.
func (n *node) daemon(l *lab, name string, argv func() []string, o process.Options) *process.Daemon {
	o.Name, o.Log = "the "+name, l.log.With("node", n.Name)
	if o.Start == nil {
		o.Start = func() (*process.Process, error) { return n.start(l, name, l.unprivileged(argv())) }
	}
	return process.NewDaemon(o)
}

// unprivileged returns a command without capabilities.
func (l *lab) unprivileged(argv []string) shim.Spec {
	return shim.Spec{Argv: argv, Env: l.cfg.Env, DropCapabilities: !l.cfg.KeepCapabilities}
}

// start starts a process of the node. Its output goes to the log of that name.
func (n *node) start(l *lab, name string, spec shim.Spec) (*process.Process, error) {
	w, err := n.begin(l, name)
	if err != nil {
		return nil, err
	}
	return w.Become(spec)
}

// begin begins a process of the node that is told later what to become. Its output goes to the log of that name.
func (n *node) begin(l *lab, name string) (*process.Waiting, error) {
	log, err := os.OpenFile(rpc.NodeLog(l.cfg.Dir, n.Name, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	w, err := process.Prepare(l.cfg.Exe, n.place, process.Stdio{Out: log, Err: log})
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	return w, nil
}

func (n *node) newKeeper(l *lab) *process.Daemon {
	var began atomic.Int64
	return n.daemon(l, "keeper", func() []string { return []string{l.cfg.Keeper, "keeper", "--socket", n.socket("keeper")} }, process.Options{
		Began:  func() { began.Store(time.Now().UnixNano()) },
		Worked: func() bool { return time.Now().UnixNano()-began.Load() > int64(keeperLife) },
		Ended:  func(string) {},
	})
}

// awaitKeeper waits until the keeper answers.
func (n *node) awaitKeeper(ctx context.Context, l *lab) error {
	ctx, cancel := context.WithTimeout(ctx, keeperTime)
	defer cancel()
	tick := time.NewTicker(keeperTry)
	defer tick.Stop()
	for {
		kept, err := keeper.Dial(ctx, n.socket("keeper"))
		if err == nil {
			kept.Close()
			return nil
		}
		if _, restarts := n.keeper.Running(); restarts > 0 {
			return fmt.Errorf("the keeper does not stay up: %s", n.said(l, "keeper"))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the keeper does not answer: %w: %s", err, n.said(l, "keeper"))
		case <-tick.C:
		}
	}
}

// said returns the end of a process's log.
func (n *node) said(l *lab, name string) string {
	const most = 1000
	b, _ := os.ReadFile(rpc.NodeLog(l.cfg.Dir, n.Name, name)) // without the log the error only says less
	return strings.TrimSpace(string(b[max(0, len(b)-most):]))
}

// route runs the step that makes the host TAP, or that adds new ranges of the cluster to its routes.
func (n *node) route(l *lab, ranges translate.Ranges) error {
	before := n.ranges
	n.ranges = before.With(ranges)
	if n.External || l.cfg.NoHostTAP || n.ranges.Equal(before) {
		return nil
	}
	p, err := n.start(l, "host-tap", shim.Spec{Argv: n.hostTAP(l), Env: l.cfg.Env})
	if err == nil {
		if code := p.Wait(); code != 0 {
			err = errors.New(n.said(l, "host-tap"))
		}
	}
	if err != nil {
		n.ranges = before
		return fmt.Errorf("node %s: make the host TAP: %w", n.Name, err)
	}
	return nil
}

// hostTAP returns the command line of that step.
func (n *node) hostTAP(l *lab) []string {
	// The step gets the ranges and not the addresses. It computes the MTU as if the addresses had the families of the
	// ranges.
	underlay := l.cfg.MTU + n.mtu - translate.PodMTU(l.cfg.MTU, nil, n.PodCIDRs)
	argv := []string{l.cfg.Product, "host-tap", "--node", n.Name, "--keeper", n.socket("keeper"), "--underlay-mtu", fmt.Sprint(underlay)}
	for _, c := range n.PodCIDRs {
		argv = append(argv, "--pod-cidr", c.String())
	}
	for _, r := range n.ranges.Pods {
		argv = append(argv, "--cluster-cidr", r.String())
	}
	for _, r := range n.ranges.Services {
		argv = append(argv, "--service-cidr", r.String())
	}
	for _, r := range l.cfg.LoadBalancers {
		argv = append(argv, "--load-balancer-cidr", r.String())
	}
	return argv
}

// close ends everything in the node.
func (n *node) close(l *lab) {
	if n.agent != nil {
		n.agent.close()
		n.keeper.Close()
	}
	if err := process.KillInside(n.ns); err != nil {
		l.log.Warn("cannot end the processes of a node", "node", n.Name, "err", err)
	}
	if err := l.underlay.Remove(n.Name); err != nil {
		l.log.Warn("cannot take a node off the underlay", "node", n.Name, "err", err)
	}
}
