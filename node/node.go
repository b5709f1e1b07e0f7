package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/audit"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/netstack/udprelay"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
	"tapestry.dev/tapestry/services/healthcheck"
	"tapestry.dev/tapestry/services/hostproxy"
	"tapestry.dev/tapestry/services/nodeport"
	"tapestry.dev/tapestry/share/descriptors"
)

// Config is the desired state of a node, compiled from one snapshot of the cluster.
type Config struct {
	Netstack netstack.Config
	Overlay  overlay.Config
	Services services.Config
	DNS      dns.Config
	Ingress  ingress.Config
	// Quotas are what pods may send, by the names of their attachments.
	Quotas map[string]quota.Quota
	// Policy says who may talk to whom.
	Policy policy.Config
	// Exits says which pods have egress addresses. SetGateways says by which nodes these leave.
	Exits exit.Pods
}

// Held is what outlives a Node, and the settings that are fixed for its life. The caller keeps and closes everything in
// it. Flows, Key, Poller and Upstreams are required.
type Held struct {
	// Flows is the flow table. Its memory usually outlives the process.
	Flows *flow.Table
	// TCP and UDP let what is relayed go on in the next Node; nil: it ends with this one, and Cut says why, if that is
	// a problem.
	TCP *tcprelay.Hold
	UDP *udprelay.Hold
	Cut error
	// FlowLog gets a record of each event of a flow; nil: nobody records them.
	FlowLog *flowlog.Log
	// Sessions is the Sessions of nodeport.Options.
	Sessions *memo.Memo
	// Key is the node's private key in the mesh.
	Key overlay.PrivateKey
	// Socket is the mesh's UDP socket. Bind replaces it when set. With neither, the Node opens a socket on any port.
	Socket *os.File
	// Resumes says that another Node had Socket, or the address of Bind, before. Then Start begins sessions with the
	// other nodes at once, and pods are heard when there are some.
	Resumes bool
	// Bind is an underlay in memory, for several Nodes in one process; see overlaytest.
	Bind overlay.Bind
	// Poller reads TAPs and host sockets.
	Poller *poll.Poller

	// UnderlayMTU is the MTU of the network between the nodes, in bytes; 0 means 1500.
	UnderlayMTU int
	// NoGSO and NoGRO stop the kernel from segmenting and coalescing the tunnel's datagrams.
	NoGSO, NoGRO bool
	// NoOffloads are offloads that TAPs must not use.
	NoOffloads tap.Offloads
	// UDPIdle is how long a UDP conversation through host sockets is kept without a datagram; 0 means two minutes.
	UDPIdle time.Duration

	// IngressPorts are the host's ports at which Ingress is served at any time: of connections there it is noted which
	// pods make them. nil stands for any port.
	IngressPorts []uint16
	// IngressConns is the largest number of client connections that Ingress serves; 0 means 4096.
	IngressConns int
	// Descriptors says how many descriptors each part may use; the zero Plan is replaced by that of this process.
	Descriptors descriptors.Plan

	// HostAddrs calls changed with the addresses of the host's interfaces at once, and again after each change, until
	// ctx ends. nil means that the host has only the addresses in the Config.
	HostAddrs func(ctx context.Context, changed func([]netip.Addr)) error
	// NodePorts says at which addresses of the host node ports are served. translate.Options.NodePorts has the same.
	NodePorts services.Places
	// DenyEgress lists outside destinations that pods must not dial.
	DenyEgress []netstack.Destination

	// Routed lists ranges outside of the cluster that pods reach from their own addresses, by the host TAP.
	Routed []netip.Prefix

	// NamedServices is how many Services have metrics of their own; 0 means latency.Limit.
	NamedServices int

	// Upstreams returns the DNS servers for names outside of the cluster, best first. It is called until it succeeds
	// once.
	Upstreams func() ([]netip.AddrPort, error)
	// DNS has the operator's choices for cluster DNS.
	DNS dns.Choices
	// ProxyUIDs are the users of this node who may use the host proxy; nil means all.
	ProxyUIDs []uint32
	// Healthy reports whether load balancers may send new connections to this node; nil means always.
	Healthy func() bool
	// Listen opens the host sockets of NodePorts and hostPorts; nil means the kernel's.
	Listen nodeport.Listener
	// ListenHealthCheck opens the host sockets of Services' health checks, at an address of the host or, for the zero
	// Addr, at all of them; nil means the kernel's.
	ListenHealthCheck func(at netip.Addr, port uint16) (net.Listener, error)
	// Log receives what happens outside of calls; nil discards it.
	Log *slog.Logger
}

// ErrStartAnew means that a Node cannot take a Config: close it and start another one. Flows and sockets in Held
// outlive both, so no translated connection is cut.
var ErrStartAnew = errors.New("start the agent anew")

var errClosed = errors.New("the node is closed")

// Node is the network of one node. Its methods may be called concurrently.
type Node struct {
	held Held
	log  *slog.Logger
	ctx  context.Context // for everything that the parts serve; done when the Node closes
	stop context.CancelFunc
	// begin is closed when attachments may be read: once all parts are set for the first time, since what a pod asks
	// before there is a server for it would be refused.
	begin chan struct{}

	// Start sets these in this order, and nothing changes them afterwards.
	watch     *watch
	mesh      *overlay.Mesh
	early     early
	path      *netstack.Path
	recorder  recorder
	exits     exits
	nodePorts *nodeport.Proxy
	balancers *healthcheck.Server
	ingress   *ingress.Server
	resolver  *dns.Server
	hostProxy *hostproxy.Server
	parts     []part // those that are made so far; after Start all of them

	// Never nil, but for policy.
	config    atomic.Pointer[Config]
	cluster   atomic.Pointer[cluster] // of config
	table     atomic.Pointer[services.Table]
	policy    atomic.Pointer[audit.Tables] // nil: everything is permitted
	findings  *audit.Findings
	compiler  *audit.Compiler // guarded by sets
	hostAddrs atomic.Pointer[[]netip.Addr]

	ingressAt    listeners
	hostBackends hostBackends

	sets    sync.Mutex // held over Set; locked before setting
	setting sync.Mutex // held while a part is set, and by Close; guards inForce and closed
	inForce bool       // Set has been called
	closed  bool
	drained sync.Once
}

// Start makes a Node with the pod ranges of c. Nothing of c is in force before the first Set, but for sessions with the
// other nodes if Held.Resumes is set. When a part cannot be made, Start closes the parts before it and returns an
// error. The Node serves until Close.
func Start(held Held, c Config) (*Node, error) {
	if held.Flows == nil || held.Poller == nil || held.Upstreams == nil {
		return nil, errors.New("start the node: Held needs Flows, Key, Poller and Upstreams")
	}
	if len(c.Netstack.PodCIDRs) == 0 {
		return nil, fmt.Errorf("start the node: Node %s has no podCIDR", c.Netstack.Node)
	}
	if held.Log == nil {
		held.Log = slog.New(slog.DiscardHandler)
	}
	if held.Healthy == nil {
		held.Healthy = func() bool { return true }
	}
	if held.Descriptors == (descriptors.Plan{}) {
		held.Descriptors = descriptors.Ours()
	}
	n := &Node{
		held: held, log: held.Log, begin: make(chan struct{}), hostBackends: newHostBackends(held.Descriptors.Of(descriptors.IngressBackends)),
	}
	n.findings = audit.NewFindings(time.Now)
	n.compiler = audit.NewCompiler(n.findings)
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.know(&c)
	n.early.to = func(peer uint64, packets [][]byte) { n.path.FromLink(peer, packets) }
	for _, p := range parts {
		made, err := p.make(n)
		if err != nil {
			n.Close()
			return nil, err // it names the part
		}
		n.parts = append(n.parts, made)
	}
	return n, nil
}

// Set applies c. It returns the errors of parts that failed; the rest of c is in force. When c needs another Node, Set
// changes nothing and returns an error that wraps ErrStartAnew.
func (n *Node) Set(c Config) error {
	n.sets.Lock()
	defer n.sets.Unlock()
	policies := n.compiler.Compile(c.Policy) // now, since this may take longer than others should wait
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed {
		return errClosed
	}
	if err := sameRanges(&n.config.Load().Netstack, &c.Netstack); err != nil {
		return err
	}
	n.know(&c)
	n.policy.Store(policies)
	first := !n.inForce
	n.inForce = true
	var errs []error
	for _, p := range n.parts {
		errs = append(errs, p.set(&c))
	}
	if first {
		close(n.begin)
		n.early.end()
	}
	return errors.Join(errs...)
}

// sameRanges returns an error when the pod ranges differ from those that the stack and the tunnel were made for. A Node
// object without ranges is accepted: it was made anew and has not got its ranges yet.
func sameRanges(before, now *netstack.Config) error {
	if len(now.PodCIDRs) == 0 || slices.Equal(before.PodCIDRs, now.PodCIDRs) {
		return nil
	}
	return fmt.Errorf("the pod ranges of Node %s are %v and were %v: %w; its pods keep their addresses until they are made anew, and are reached on this node alone",
		now.Node, now.PodCIDRs, before.PodCIDRs, ErrStartAnew)
}

// know notes what the Node is told of the cluster, before its parts are.
func (n *Node) know(c *Config) {
	n.config.Store(c)
	n.cluster.Store(clusterOf(&c.Netstack))
}

// Config returns what was set last, or before the first Set what Start was given. The caller must not change it.
func (n *Node) Config() *Config { return n.config.Load() }

// Run keeps the flow table's clock until ctx is done.
func (n *Node) Run(ctx context.Context) { n.path.Run(ctx) }

// KeepAgain has what goes on in the next Node held once more, by somebody new.
func (n *Node) KeepAgain() { n.path.Stack().KeepAgain() }

// drainTime is how long the drains of the parts take at most, and drainLastTime those that come last. With Close both
// have to fit into terminationGracePeriodSeconds of deploy/. Only tests change them.
var (
	drainTime     = 5 * time.Second
	drainLastTime = 2 * time.Second
)

// Drain lets requests through Ingress, and connections of node ports that end with the Node, finish for up to
// drainTime. New ones wait in the sockets that are held. After that, connections to cluster DNS over TCP end for up to
// drainLastTime. Who begins one then sends the SYN again, to the next Node. Everything else goes on, Set too. What is
// left is cut. The second call waits for the first.
func (n *Node) Drain() {
	n.drained.Do(func() {
		n.drain(drainTime, func(ctx context.Context, p part) { p.drain(ctx) })
		n.drain(drainLastTime, func(ctx context.Context, p part) { p.drainLast(ctx) })
	})
}

// drain drains all parts at the same time, for at most limit.
func (n *Node) drain(limit time.Duration, drain func(context.Context, part)) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var parts sync.WaitGroup
	for _, p := range n.parts {
		parts.Go(func() { drain(ctx, p) })
	}
	parts.Wait()
}

// Close ends the Node, after Drain. Translated connections, and relayed ones that are held, go on in the next Node that
// has the same Flows.
func (n *Node) Close() {
	n.Drain()
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed {
		return
	}
	n.closed = true
	if !n.inForce {
		close(n.begin)
	}
	for _, p := range slices.Backward(n.parts) {
		p.close()
	}
	n.stop()
}
