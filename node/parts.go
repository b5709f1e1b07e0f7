package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/stack"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/healthcheck"
	"tapestry.dev/tapestry/services/nodeport"
	"tapestry.dev/tapestry/share/descriptors"
)

// parts lists what a Node is made of. Parts are made and set in this order, so that each finds those it refers to, and
// closed in the reverse order.
var parts = []maker{
	{"services", makeServices},          // frontends and backends, which the other parts ask for
	{"mesh", makeMesh},                  // the way to other nodes
	{"host addresses", makeHostAddrs},   // those of the host's interfaces
	{"policy", makePolicy},              // who may talk to whom, compiled by Set
	{"packet path", makePath},           // attachments, flows and the stack
	{"node ports", makeNodePorts},       // host sockets of NodePorts and hostPorts
	{"health checks", makeHealthChecks}, // what load balancers ask about Services with local traffic policy
	{"ingress", makeIngress},            // HTTP from outside
	{"resolvers", makeResolvers},        // cluster DNS, on the stack's addresses
	{"host proxy", makeHostProxy},       // the way into the cluster for processes of the node, without a host TAP
	{"sessions", makeSessions},          // with other nodes, before pods are heard
}

// maker makes one part. The part finds earlier parts in the fields of the Node.
type maker struct {
	name string // for the reader
	make func(*Node) (part, error)
}

// part is one part of a Node. Its funcs are never nil; quiet has funcs that do nothing. All funcs but set may be called
// concurrently.
type part struct {
	// set applies a Config, which the part may keep but must not change. One goroutine at a time calls it.
	set func(*Config) error
	// problems returns the present problems.
	problems func() []Problem
	// counters returns what the part counts. Counters get their names here and nowhere else.
	counters func() counter.List
	// drain lets what is under way finish until ctx ends, while all other parts go on. Drain calls it before Close
	// closes anything, those of all parts at the same time.
	drain func(ctx context.Context)
	// drainLast is drain for a part whose new clients have no socket in which they could wait for the next Node: it
	// comes after the drains of all parts, and has less time, so that those clients need not try for long.
	drainLast func(ctx context.Context)
	close     func()
}

// quiet is a part that does nothing.
var quiet = part{
	set:       func(*Config) error { return nil },
	problems:  func() []Problem { return nil },
	counters:  func() counter.List { return nil },
	drain:     func(context.Context) {},
	drainLast: func(context.Context) {},
	close:     func() {},
}

func makeServices(n *Node) (part, error) {
	var unusable atomic.Pointer[[]Problem]
	unusable.Store(new([]Problem))
	// Nobody asks the Table before there is a packet path, which knows who is charged.
	state := services.NewState(n.chargedFor)
	n.table.Store(services.Empty(state))
	n.watch = newWatch(n.table.Load, state.Loads, n.held.NamedServices)
	p := quiet
	p.set = func(c *Config) error {
		table, problems := n.table.Load().Update(c.Services)
		n.table.Store(table)
		n.watch.set(table)
		list := problemsOf(problems, Problem{Warning: true, Shared: true})
		unusable.Store(&list)
		return nil
	}
	p.problems = func() []Problem { return *unusable.Load() }
	p.counters = func() counter.List {
		return append(n.countServices(), slices.Concat(countAffinity(state.Affinity.Stats()), n.watch.counters())...)
	}
	return p, nil
}

// chargedFor returns who is charged for the sessions of a client of Services: a pod, a node, or a range of addresses
// outside.
func (n *Node) chargedFor(client netip.Addr) netip.Prefix {
	c := &n.Config().Netstack
	if o := n.path.Owner(client); o != client || claimed(c, client) || isOwn(c, *n.hostAddrs.Load(), client) {
		return addressing.Whole(o)
	}
	return addressing.Client(client)
}

func makeMesh(n *Node) (p part, err error) {
	n.mesh, err = overlay.New(overlay.Options{
		PrivateKey: n.held.Key, Socket: n.held.Socket, Bind: n.held.Bind, StackAddrs: stackAddrs(n.Config().Netstack.PodCIDRs),
		UnderlayMTU: n.held.UnderlayMTU, Logger: n.log, Resumes: n.held.Resumes,
		Receive:   n.early.take,
		Forbidden: func(a netip.Addr) bool { return claimed(&n.Config().Netstack, a) }, Waiting: n.held.Poller.Waiting,
		NoGSO: n.held.NoGSO, NoGRO: n.held.NoGRO,
	})
	if err == nil && n.held.Resumes {
		// Until there is a session, all that other nodes send is lost, so sessions are made while the other parts are.
		// What is wrong is told by set.
		_ = n.mesh.Set(n.Config().Overlay)
	}
	p = quiet
	p.set = func(c *Config) error { return n.mesh.Set(c.Overlay) }
	p.problems = func() (list []Problem) {
		for _, r := range n.mesh.Refused() {
			list = append(list, Problem{Problem: services.Problem{Object: "Node " + r.Name, Message: "it is left out of the tunnel: " + r.Why.Error()}})
		}
		for _, l := range n.mesh.Lost() {
			if l.Preferred.IsValid() {
				list = append(list, Problem{Warning: true, Problem: services.Problem{Object: "Node " + l.Name, Message: fmt.Sprintf(
					"it does not answer at %s from node %s, so packets for it go to %s: let UDP between the two nodes through in both directions, or remove the address from the Node",
					l.Preferred, n.Config().Netstack.Node, l.Used)}})
			}
		}
		return list
	}
	p.counters = n.countMesh
	p.close = func() { n.mesh.Close() }
	return p, err
}

// meetTime is how long pods wait for sessions with other nodes, when everything else is there: what they send before
// would be lost. A node that is down costs each start that much.
const meetTime = 25 * time.Millisecond

func makeSessions(n *Node) (part, error) {
	var meet sync.Once
	p := quiet
	p.set = func(*Config) error {
		if n.held.Resumes {
			meet.Do(func() { n.mesh.Meet(meetTime) })
		}
		return nil
	}
	return p, nil
}

func stackAddrs(podCIDRs []netip.Prefix) (list []netip.Addr) {
	for _, cidr := range podCIDRs {
		list = append(list, addressing.Stack(cidr))
	}
	return list
}

func makePath(n *Node) (p part, err error) {
	d := n.held.Descriptors
	n.recorder = n.newRecorder()
	n.path, err = netstack.New(netstack.Options{
		Flows: n.held.Flows, Link: n.mesh, Logger: n.log, MTU: n.Config().Netstack.MTU, EgressIdle: n.held.UDPIdle, Poller: n.held.Poller,
		Shares: stack.Shares{TCP: d.Of(descriptors.EgressTCP), UDP: d.Of(descriptors.EgressUDP), Pings: d.Of(descriptors.EgressPings), Dials: d.Of(descriptors.NodePortConns)},
		Begin:  n.begin, Asks: n.asks, HoldTCP: n.held.TCP, HoldUDP: n.held.UDP, Watcher: n.watch, Observer: n.recorder.observer(),
		Steer:   func(t *packet.Tuple, wrapped bool) packet.Choice { return n.table.Load().Steer(t, wrapped) },
		Another: func(t *packet.Tuple, refused []uint64) packet.Choice { return n.table.Load().Another(t, refused) },
	})
	n.exits.config.Routed = n.held.Routed
	p = quiet
	p.set = func(c *Config) error {
		n.path.SetQuotas(c.Quotas)
		n.setExits(c)
		err := n.setPath(c)
		n.resume() // nobody is heard before all parts are set
		return err
	}
	p.problems = func() []Problem { return slices.Concat(n.strandedPods(), n.cutRelays(), n.unroutable()) }
	p.counters = func() counter.List { return slices.Concat(n.countPath(), n.countOutside(), n.recorder.counters()) }
	p.close = func() {
		// A pod that asks cluster DNS meanwhile is answered by the next agent. With the servers gone first, the stack
		// would refuse the question.
		n.path.Stop()
		n.stop()
		_ = n.path.Close()
	}
	return p, err
}

func makeNodePorts(n *Node) (part, error) {
	n.nodePorts = nodeport.New(nodeport.Options{
		Listen:      n.held.Listen,
		IdleTimeout: n.held.UDPIdle,
		MaxSockets:  n.held.Descriptors.Of(descriptors.Listeners),
		MaxConns:    n.held.Descriptors.Of(descriptors.NodePortConns),
		MaxArrivals: n.held.Descriptors.Of(descriptors.NodePortArrivals),
		MaxSessions: n.held.Descriptors.Of(descriptors.NodePortUDP),
		Sessions:    n.held.Sessions,
		Dial:        n.dialAs,
		Join:        n.join,
		Accept:      n.accept,
		Adopt:       n.adopt,
		Door:        n.openDoor,
		Pick:        func(t *packet.Tuple) packet.Choice { return n.table.Load().PickOnHost(t) },
		Another: func(t *packet.Tuple, refused []uint64) packet.Choice {
			return n.table.Load().AnotherOnHost(t, refused)
		},
		Stays:     func(t *packet.Tuple, c packet.Choice) bool { return n.table.Load().StaysOnHost(t, c) },
		Begin:     n.watch.begin,
		Forbidden: func(a netip.Addr) bool { return claimed(&n.Config().Netstack, a) },
		NodeAddr:  func(like netip.Addr) netip.Addr { return nodeAddr(&n.Config().Netstack, like) },
		Logger:    n.log,
	})
	p := quiet
	p.set = func(*Config) error { n.setNodePorts(); return nil }
	p.problems = func() []Problem { return problemsOf(n.nodePorts.Problems(), Problem{Port: true}) }
	p.counters = n.countNodePorts
	p.drain = func(ctx context.Context) {
		if left := n.nodePorts.Drain(ctx); left > 0 {
			n.log.Warn("connections of node ports were cut", "connections", left)
		}
	}
	p.close = func() { _ = n.nodePorts.Close() }
	return p, nil
}

func makeHealthChecks(n *Node) (part, error) {
	n.balancers = healthcheck.New(healthcheck.Options{
		Listen: n.held.ListenHealthCheck, Healthy: n.held.Healthy, Logger: n.log,
		MaxSockets: n.held.Descriptors.Of(descriptors.CheckPorts), MaxConns: n.held.Descriptors.Of(descriptors.Checks),
	})
	p := quiet
	// Its failures become problems.
	p.set = func(*Config) error { n.setHealthChecks(); return nil }
	p.problems = func() []Problem { return problemsOf(n.balancers.Problems(), Problem{Port: true}) }
	p.close = func() { _ = n.balancers.Close() }
	return p, nil
}

func makeIngress(n *Node) (part, error) {
	n.ingress = ingress.New(ingress.Options{
		Dial:      n.dial,
		Law:       n.lawOfIngress,
		Who:       n.who,
		Endpoints: func(p ingress.ServicePort) []netip.AddrPort { return n.table.Load().Endpoints(services.ServicePort(p)) },
		Method:    func(p ingress.ServicePort) balance.Method { return n.table.Load().Method(services.ServicePort(p)) },
		Logger:    n.log,
		MaxConns:  min(cmp.Or(n.held.IngressConns, 4096), n.held.Descriptors.Of(descriptors.IngressClients)),
		Limbo:     n.held.Descriptors.Of(descriptors.IngressRefused),
		// Those that wait for use leave half to others, also when all lead to endpoints on the host.
		MaxIdle: max(1, n.held.Descriptors.Of(descriptors.IngressBackends)/2),
	})
	p := quiet
	p.set = func(c *Config) error { return n.ingress.Set(c.Ingress) }
	p.counters = n.countIngress
	p.drain = func(ctx context.Context) {
		if err := n.ingress.Shutdown(ctx); err != nil {
			n.log.Warn("requests were cut", "requests", n.ingress.Stats().Cut, "err", err)
		}
	}
	return p, nil
}

// Problem is a fault of an object, as this node finds it.
type Problem struct {
	services.Problem
	// Warning is set when the object works, but perhaps not as its author meant. Otherwise it does not work.
	Warning bool
	// Shared is set when every node finds this problem.
	Shared bool
	// Port is set when it is that the host has a port not for us.
	Port bool
}

// problemsOf turns problems of Services into Problems with the flags of like.
func problemsOf(list []services.Problem, like Problem) []Problem {
	var out []Problem
	for _, p := range list {
		like.Problem = p
		out = append(out, like)
	}
	return out
}

// Problems returns the present problems, in the order of the parts.
func (n *Node) Problems() []Problem {
	var list []Problem
	for _, p := range n.parts {
		list = append(list, p.problems()...)
	}
	return list
}
