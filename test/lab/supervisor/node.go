package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"tapestry.dev/tapestry/netstack/hostport"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab/plan"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// node is a running node.
type node struct {
	plan.Node
	*member
	dir    string
	place  place
	keeper *keeper.Keeper
	agent  *agent // nil for an external node

	stop context.CancelFunc
	done sync.WaitGroup

	host hostport.Config
}

// newNode makes the node's namespace, its keeper and its host TAP. The agent is started apart.
func (l *lab) newNode(n plan.Node, ranges []netip.Prefix, podMTU int) (_ *node, err error) {
	m, err := l.underlay.add(n.Name, n.Addrs)
	if err != nil {
		return nil, fmt.Errorf("make node %s: %w", n.Name, err)
	}
	out := &node{Node: n, member: m, dir: rpc.NodeDir(l.cfg.Dir, n.Name), keeper: keeper.New()}
	ctx, cancel := context.WithCancel(context.Background())
	out.stop = cancel
	defer func() {
		if err != nil {
			err = fmt.Errorf("make node %s: %w", n.Name, err)
			out.close(l)
		}
	}()
	if out.place, err = l.nodePlace(n.Name, m.ns, out.dir); err != nil || n.External {
		return out, err
	}
	if err := out.serveKeeper(ctx, l.log); err != nil {
		return nil, err
	}
	if err := out.addHostPort(ranges, podMTU); err != nil {
		return nil, err
	}
	out.agent = newAgent(l, out)
	return out, nil
}

// nodePlace is where the processes of a node's or the outside's namespace run: resolved by the outside resolvers.
func (l *lab) nodePlace(name string, ns *tap.Namespace, dir string) (place, error) {
	var resolv string
	for _, a := range resolverAddrs {
		resolv += "nameserver " + a.String() + "\n"
	}
	return l.place(ns, dir, files{hostname: name, resolv: resolv, hosts: "127.0.0.1\tlocalhost " + name + "\n::1\tlocalhost " + name + "\n"})
}

func (n *node) socket(name string) string { return n.dir + "/" + name + ".sock" }

func (n *node) serveKeeper(ctx context.Context, log *slog.Logger) error {
	ln, err := keeper.Listen(n.socket("keeper"))
	if err != nil {
		return err
	}
	log = log.With("node", n.Name)
	n.done.Go(func() {
		if err := n.keeper.Serve(ctx, ln, keeper.Options{Log: log}); err != nil {
			log.Error("the keeper has ended", "err", err)
		}
	})
	return nil
}

// addHostPort does what an init step with NET_ADMIN does on a real node: it makes the host's TAP with its routes.
func (n *node) addHostPort(ranges []netip.Prefix, mtu int) error {
	n.host = hostport.Config{PodCIDRs: n.PodCIDRs, Ranges: slices.Clone(ranges), MTU: mtu, Owner: os.Geteuid()}
	return hostport.Ensure(n.ns, n.keeper, n.host)
}

// route adds what is new among the cluster's ranges to the routes of the host's TAP.
func (n *node) route(ranges []netip.Prefix) error {
	if n.External {
		return nil
	}
	before := len(n.host.Ranges)
	for _, r := range ranges {
		if !slices.Contains(n.host.Ranges, r) {
			n.host.Ranges = append(n.host.Ranges, r)
		}
	}
	if len(n.host.Ranges) == before {
		return nil
	}
	return hostport.Ensure(n.ns, n.keeper, n.host)
}

// close ends everything in the node.
func (n *node) close(l *lab) {
	if n.agent != nil {
		n.agent.close()
	}
	if err := killInside(n.ns); err != nil {
		l.log.Warn("cannot end the processes of a node", "node", n.Name, "err", err)
	}
	n.stop()
	n.done.Wait()
	n.keeper.Close()
	if err := l.underlay.remove(n.Name); err != nil {
		l.log.Warn("cannot take a node off the underlay", "node", n.Name, "err", err)
	}
}
