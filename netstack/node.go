package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/fragment"
	"tapestry.dev/tapestry/netstack/gateway"
	"tapestry.dev/tapestry/netstack/pace"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/refusal"
	"tapestry.dev/tapestry/netstack/tap"
)

// Options are what a Node needs for its life.
type Options struct {
	// Flows is the flow table, usually in memory that outlives the process.
	Flows *flow.Table
	// Link is the way to other nodes; nil for a node alone.
	Link Link
	// Observer is told of flows, of their ends by Flows; nil tells nobody.
	Observer Observer
	// Logger gets what happens asynchronously; nil discards.
	Logger *slog.Logger
	// MTU is the pods' MTU until the first Config says otherwise.
	MTU int
	// EgressIdle is how long an idle UDP conversation with the outside is kept; 0 is two minutes.
	EgressIdle time.Duration
	// Poller watches the gateway's host sockets. It stays the caller's, who closes it after the Node; nil: the gateway
	// makes one.
	Poller *poll.Poller
	// Now is the clock of Ports' limits, monotonic; nil is time.Now.
	Now func() time.Time
}

// maxFragmented is how many fragmented datagrams a node knows the ways of at once.
const maxFragmented = 4096

// Node is one agent's data plane: Ports, tables, the gateway's stack and the Link. Its methods are safe for concurrent
// use.
type Node struct {
	log      *slog.Logger
	flows    *flow.Table
	link     Link
	observer Observer

	now       func() time.Time
	ports     ports
	snapshot  atomic.Pointer[snapshot]
	ready     chan struct{} // closed by the first Set: nothing is read from a Port before (fail closed)
	gateway   *gateway.Gateway
	fragments *fragment.Table
	// refusals limits ICMP errors sent (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
	refusals *refusal.Limit

	workers workers
	running sync.WaitGroup

	mu     sync.Mutex // guards below and Set
	closed bool
}

// New makes a Node. It forwards nothing before the first Set.
func New(o Options) (*Node, error) {
	if o.Flows == nil {
		return nil, errors.New("netstack: Options.Flows is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	n := &Node{
		now: o.Now, log: o.Logger, flows: o.Flows, link: o.Link, observer: o.Observer, ready: make(chan struct{}),
		refusals: refusal.NewLimit(o.Now, rand.Uint64()), fragments: fragment.New(fragment.Options{Max: maxFragmented}),
	}
	if o.Observer != nil {
		o.Flows.OnEnd(o.Observer.Ended)
	}
	n.ports.table.Store(&portTable{})
	n.workers.node = n
	var err error
	if n.gateway, err = gateway.New(gateway.Options{
		Send: n.fromGateway, SendIP: n.fromRelay, Poller: o.Poller, MTU: o.MTU, Idle: o.EgressIdle, Pace: n.pace,
		Refusals: n.refusals,
	}); err != nil {
		return nil, err
	}
	return n, nil
}

// Gateway is the part of the node that ends connections.
func (n *Node) Gateway() *gateway.Gateway { return n.gateway }

// Set replaces what the node knows of the cluster; p is nil where everything may be. Flows survive: one that may go on
// no longer is found at its next packet. What is equal to what was set before, Balancer and Policy by ==, changes
// nothing, and no flow is looked at anew. Nothing that c holds may be changed afterwards.
func (n *Node) Set(c Config, b Balancer, p Policy) error {
	if b == nil {
		return errors.New("netstack: Set needs a Balancer")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.snapshot.Load()
	generation := uint32(1)
	if before != nil {
		if before.isOf(&c, b, p) {
			return nil
		}
		generation = before.generation + 1
	}
	s := compile(c, b, p, generation)
	g := gateway.Config{Local: c.LocalAddrs, MTU: c.MTU}
	for _, a := range s.gates {
		g.Gateway = append(g.Gateway, a.Netip())
	}
	if err := n.gateway.Set(g); err != nil {
		return fmt.Errorf("netstack: %w", err)
	}
	n.snapshot.Store(s)
	if before == nil {
		close(n.ready)
	}
	return nil
}

// Attach adds a Port and starts reading from its device, which the Node closes at Detach or Close.
func (n *Node) Attach(c PortConfig, dev Device) error {
	p := &Port{PortConfig: c, dev: dev, lacks: tap.AllOffloads &^ dev.Offloads()}
	p.limit = pace.New(c.Limit, n.now, func(frame []byte) { n.write(p, frame) })
	for _, a := range c.Addrs {
		p.addrs = append(p.addrs, packet.AddrFrom(a))
	}
	p.owner = flow.OwnerNode
	if c.Kind == PodPort && len(p.addrs) > 0 {
		p.owner = ownerAt(p.addrs[0])
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("attach %s: the node is closed", c.Name)
	}
	if err := n.ports.add(p); err != nil {
		return err
	}
	n.running.Add(1)
	go n.read(p)
	return nil
}

// write writes a frame that has waited for p's limit.
func (n *Node) write(p *Port, frame []byte) {
	w := n.workers.get()
	defer n.workers.put(w)
	if fault := w.pkt.ParseFrame(frame); fault != packet.Good {
		w.drops[faultReason(fault)].Add(1)
	} else if !w.write(&w.pkt, p) {
		w.drops[PortDown].Add(1)
	}
}

func (n *Node) read(p *Port) {
	defer n.running.Done()
	<-n.ready
	w := n.workers.get()
	defer n.workers.put(w)
	w.port = p
	if err := p.dev.Run(w.fromPort, w.rest); err != nil {
		n.log.Error("a Port stopped", "port", p.Name, "err", err)
		if _, still := n.ports.remove(p.Name, p); still {
			p.close()
		}
	}
}

// Detach removes a Port and closes its device. It reports whether there was one.
func (n *Node) Detach(name string) bool {
	p, ok := n.ports.remove(name, nil)
	if !ok {
		return false
	}
	p.close()
	for _, a := range p.Addrs {
		n.gateway.Forget(a)
	}
	return true
}

// Ports gives the counters of every Port, sorted by name.
func (n *Node) Ports() []PortStats {
	t := n.ports.table.Load()
	out := make([]PortStats, 0, len(t.byName))
	for _, p := range t.byName {
		out = append(out, PortStats{
			Name: p.Name, Addrs: p.Addrs,
			ToPackets: p.toPort.packets.Load(), ToBytes: p.toPort.bytes.Load(),
			FromPackets: p.fromPort.packets.Load(), FromBytes: p.fromPort.bytes.Load(),
			Down: p.down.Load(), OverLimit: p.overLimit.Load(), Offloads: p.dev.Offloads().String(),
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Stats counts packets by Verdict and drops by DropReason, since start.
type Stats struct {
	Verdicts map[string]uint64
	Drops    map[string]uint64
}

// Stats sums the workers' counters. Reasons and verdicts that did not occur are left out.
func (n *Node) Stats() Stats { return n.workers.stats() }

// FromLink takes a batch of decrypted packets that came from one peer, in order. packets is borrowed.
func (n *Node) FromLink(id uint64, packets [][]byte) {
	w := n.workers.get()
	w.fromLink(id, packets)
	n.workers.put(w)
}

// fromGateway takes a superframe that the gateway's stack sent, and gives a buffer in exchange.
func (n *Node) fromGateway(frame []byte) []byte {
	w := n.workers.get()
	defer n.workers.put(w)
	return w.fromGateway(frame)
}

// fromRelay takes an IP packet that the gateway made. It is borrowed.
func (n *Node) fromRelay(ip []byte, vnet packet.VNetHdr) {
	w := n.workers.get()
	defer n.workers.put(w)
	w.fromRelay(ip, vnet)
}

// pace tells a sender inside of the node, which can wait, whether a pod of this node is limited, and how long to wait
// now.
func (n *Node) pace(pod packet.Addr) (limited bool, wait time.Duration) {
	p := n.ports.table.Load().byAddr[pod]
	if p == nil || p.limit == nil {
		return false, 0
	}
	return true, p.limit.Wait()
}

// Local reports whether a pod of this node has the address.
func (n *Node) Local(a netip.Addr) bool {
	return n.ports.table.Load().byAddr[packet.AddrFrom(a)] != nil
}

// Attached reports whether there is a Port of that name. One whose device has gone is there no longer.
func (n *Node) Attached(name string) bool { return n.ports.table.Load().byName[name] != nil }

// Run keeps the flow table's clock and sweeps it until ctx ends.
func (n *Node) Run(ctx context.Context) { n.flows.Run(ctx) }

// Close closes the devices of all Ports and stops the gateway. The flow table stays whole for the next agent. The Ports
// keep their addresses, so that what the Link still brings for them is lost and not refused: connections are to go on
// in the next agent.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	if n.snapshot.Load() == nil {
		close(n.ready)
	}
	n.mu.Unlock()
	for _, p := range n.ports.table.Load().byName {
		p.close()
	}
	n.running.Wait()
	n.gateway.Close()
	return nil
}
