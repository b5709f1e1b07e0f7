package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/healthcheck"
	"tapestry.dev/tapestry/services/nodeport"
)

// errNotYet: the cluster has nothing that a node could begin with.
var errNotYet = errors.New("no pod can run here yet")

// translated is what a snapshot of the cluster comes to, without what else there is on the node.
type translated struct {
	services services.Config
	problems []kube.Problem
}

// compile makes the Table in force that of the last snapshot and of the host ports that runtimes asked for. It is called with
// a.applying held.
func (a *agent) compile() *services.Table {
	c := a.translated.services
	var taken []services.Problem
	c.HostPorts, taken = a.pods.HostPorts(c.HostPorts)
	table, unusable := a.table.Load().Update(c)
	problems := slices.Clone(a.translated.problems)
	for _, p := range append(taken, unusable...) {
		problems = append(problems, kube.Problem{Severity: kube.Warning, Object: objectOf(p.Object), Message: p.Message})
	}
	a.table.Store(table)
	a.problems.Store(&problems)
	return table
}

// remap serves the host ports that there are now that pods have come or gone.
func (a *agent) remap() {
	a.applying.Lock()
	defer a.applying.Unlock()
	before := a.table.Load()
	table := a.compile()
	if table == before {
		return // Pod objects name the same
	}
	if err := a.node.Set(*a.config.Load(), table, nil); err != nil {
		a.log.Error("host ports of a pod were not applied", "err", err)
	}
	a.nodePorts.Set(nodeport.Ports(table))
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
	first := a.node == nil
	if first && len(result.Netstack.PodCIDRs) == 0 {
		return fmt.Errorf("%w: the cluster has no Node %s with a podCIDR yet; waiting for it", errNotYet, a.agentConfig.node)
	}
	if err := otherRanges(a.config.Load(), &result.Netstack); err != nil {
		return err
	}
	a.config.Store(&result.Netstack)
	if first {
		if err := a.start(&result, mtu); err != nil {
			return err
		}
		a.attachKept(items) // nothing is read from them yet
	}
	a.translated = translated{result.Services, append(slices.Clone(result.Problems), found...)}
	table := a.compile()
	err = errors.Join(
		a.mesh.Set(result.Overlay),
		a.node.Set(result.Netstack, table, nil),
		a.ingress.Set(result.Ingress),
	)
	err = errors.Join(err, a.resolvers.set(ctx, a, result.Netstack.LocalAddrs))
	a.nodePorts.Set(nodeport.Ports(table))
	a.balancers.Set(table.HealthChecks())
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

// start makes the parts that need to know the node's addresses.
func (a *agent) start(r *translate.Result, underlay int) (err error) {
	c := r.Netstack
	var gateways []netip.Addr
	for _, cidr := range c.PodCIDRs {
		gateways = append(gateways, addressing.Gateway(cidr))
	}
	a.mesh, err = overlay.New(overlay.Options{
		PrivateKey: a.key, Socket: a.socket, Gateway: gateways, UnderlayMTU: underlay, Logger: a.log,
		Receive:   func(peer uint64, packets [][]byte) { a.node.FromLink(peer, packets) },
		Forbidden: a.claimed, Waiting: a.poller.Waiting,
		NoGSO: !a.offloads.udpGSO, NoGRO: !a.offloads.udpGRO,
	})
	if err != nil {
		return err
	}
	a.node, err = netstack.New(netstack.Options{
		Flows: a.flows, Link: a.mesh, Logger: a.log, MTU: c.MTU, EgressIdle: a.udpIdle, Poller: a.poller,
	})
	if err != nil {
		return err
	}
	a.nodePorts = nodeport.New(nodeport.Options{
		IdleTimeout: a.udpIdle,
		Dial:        a.dialAs,
		Join:        a.join,
		Pick:        func(t *packet.Tuple) packet.Choice { return a.table.Load().PickOnHost(t) },
		Backend:     func(id uint64) packet.BackendState { return a.table.Load().Backend(id) },
		Forbidden:   a.claimed,
		NodeAddr:    func(like netip.Addr) netip.Addr { return nodeAddr(a.config.Load(), like) },
		Logger:      a.log,
	})
	a.balancers = healthcheck.New(healthcheck.Options{Healthy: func() bool { return a.progress.Alive() == nil }, Logger: a.log})
	a.ingress = ingress.New(ingress.Options{Dial: a.dial, Logger: a.log})
	return nil
}

// claimed reports whether an address lies in a pod or service range.
func (a *agent) claimed(ip netip.Addr) bool {
	c := a.config.Load()
	inside := func(p netip.Prefix) bool { return p.Contains(ip) }
	return slices.ContainsFunc(c.ClusterCIDRs, inside) || slices.ContainsFunc(c.ServiceCIDRs, inside)
}

// dial reaches an endpoint from the gateway's own address.
func (a *agent) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return a.dialAs(ctx, network, netip.AddrPort{}, to)
}

// dialAs reaches an endpoint as client.
func (a *agent) dialAs(ctx context.Context, network string, client, to netip.AddrPort) (net.Conn, error) {
	c := a.config.Load()
	if slices.Contains(c.NodeAddrs, to.Addr()) {
		return (&net.Dialer{}).DialContext(ctx, network, to.String())
	}
	return a.node.Gateway().Dial(ctx, network, seenAs(c, client, to), to)
}

// join carries a connection to a pod of this node.
func (a *agent) join(ctx context.Context, conn *net.TCPConn, client, to netip.AddrPort) bool {
	if !a.node.Local(to.Addr()) {
		return false
	}
	if err := a.node.Gateway().Join(ctx, conn, seenAs(a.config.Load(), client, to), to); err != nil {
		a.log.Debug("a connection goes through the stack", "err", err)
		return false
	}
	return true
}

// seenAs is the address that an endpoint shall see in the place of client's, with an invalid one for the gateway's own.
// Backends at another node's own address do not see clients: the kernel there would answer them past us, as it would a node, over
// the network between the nodes. Localhost clients are this node to a pod.
func seenAs(c *netstack.Config, client, to netip.AddrPort) netip.AddrPort {
	switch {
	case slices.ContainsFunc(c.Peers, func(p netstack.PeerRoute) bool { return slices.Contains(p.NodeAddrs, to.Addr()) }):
		return netip.AddrPort{}
	case client.IsValid() && client.Addr().IsLoopback():
		if own := nodeAddr(c, to.Addr()); own.IsValid() {
			return netip.AddrPortFrom(own, 0)
		}
		return netip.AddrPort{}
	}
	return client
}

// nodeAddr is this node's address of the family of like, or invalid.
func nodeAddr(c *netstack.Config, like netip.Addr) netip.Addr {
	for _, n := range c.NodeAddrs {
		if n.Is4() == like.Is4() {
			return n
		}
	}
	return netip.Addr{}
}
