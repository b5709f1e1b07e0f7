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
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
	"tapestry.dev/tapestry/services/healthcheck"
	"tapestry.dev/tapestry/services/nodeport"
)

// Config is everything that a snapshot of the cluster says to a node.
type Config struct {
	Netstack netstack.Config
	Overlay  overlay.Config
	Services services.Config
	DNS      dns.Config
	Ingress  ingress.Config
}

// Held is what outlives a Node, and what is fixed for its life. Everything in it stays the caller's. Required are
// Flows, Key, Poller and Upstreams.
type Held struct {
	// Flows is the table of flows, usually in memory that outlives the process.
	Flows *flow.Table
	// Key is the node's in the mesh.
	Key overlay.PrivateKey
	// Socket is the mesh's UDP socket. Bind takes its place where there is one; with neither a socket is opened on any
	// port.
	Socket *os.File
	// Bind is an underlay in memory, for several Nodes in one process; see overlaytest.
	Bind overlay.Bind
	// Poller reads TAPs and host sockets.
	Poller *poll.Poller

	// UnderlayMTU is that of the network between the nodes in bytes; 0: 1500.
	UnderlayMTU int
	// NoGSO and NoGRO keep the kernel from cutting and coalescing the tunnel's datagrams.
	NoGSO, NoGRO bool
	// NoOffloads are those that TAPs are to do without.
	NoOffloads tap.Offloads
	// UDPIdle is how long a UDP conversation through host sockets lives without a datagram; 0: two minutes.
	UDPIdle time.Duration

	// IngressConns is how many connections Ingress serves at most; 0: 4096.
	IngressConns int

	// HostAddrs gives changed the addresses of the host's interfaces at once, and again when they are others, until ctx
	// ends. nil: the host has the addresses of the Config, and no others.
	HostAddrs func(ctx context.Context, changed func([]netip.Addr)) error
	// DenyEgress is what pods may not dial outside.
	DenyEgress []netstack.Destination

	// Upstreams gives the DNS servers for names outside of the cluster, best first. It is asked until it succeeds once.
	Upstreams func() ([]netip.AddrPort, error)
	// Healthy reports whether load balancers may send new connections to this node; nil: always.
	Healthy func() bool
	// Listen opens the host sockets of NodePorts and hostPorts; nil is the kernel.
	Listen nodeport.Listener
	// ListenHealthCheck opens the host sockets of Services' health checks; nil is the kernel.
	ListenHealthCheck func(port uint16) (net.Listener, error)
	// Log gets what happens asynchronously; nil discards.
	Log *slog.Logger
}

// ErrStartAnew tells that a Node cannot become what a Config says: it has to be closed, and another be started. What
// the Held holds outlives both, so that nothing translated is cut.
var ErrStartAnew = errors.New("start the agent anew")

var errClosed = errors.New("the node is closed")

// Node is the network of one node. Its methods may be called concurrently.
type Node struct {
	held Held
	log  *slog.Logger
	ctx  context.Context // of what the parts serve; done when the Node closes
	stop context.CancelFunc

	// Made by Start, in this order, and not changed after.
	mesh      *overlay.Mesh
	path      *netstack.Path
	nodePorts *nodeport.Proxy
	balancers *healthcheck.Server
	ingress   *ingress.Server
	parts     []part // all of them, those that are made

	// Never nil.
	config    atomic.Pointer[Config]
	table     atomic.Pointer[services.Table]
	hostAddrs atomic.Pointer[[]netip.Addr]

	ingressAt listeners

	setting sync.Mutex // held by all that sets a part, and by Close; guards inForce and closed
	inForce bool       // Set has been called
	closed  bool
}

// Start makes a Node for the cluster that c describes; its pod ranges are the Node's for life. Nothing is in force
// before the first Set. When a part cannot be made, those before it are closed and there is no Node. What the parts
// serve ends with ctx as well as with Close, which is called in any case.
func Start(ctx context.Context, held Held, c Config) (*Node, error) {
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
	n := &Node{held: held, log: held.Log}
	n.ctx, n.stop = context.WithCancel(ctx)
	n.config.Store(&c)
	for _, p := range parts {
		made, err := p.make(n)
		if err != nil {
			n.Close()
			return nil, err // it says what it is about
		}
		n.parts = append(n.parts, made)
	}
	return n, nil
}

// Set brings the node to c. What cannot be applied is returned, the rest is in force. A c that this Node cannot become
// changes nothing; the error wraps ErrStartAnew then.
func (n *Node) Set(c Config) error {
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed {
		return errClosed
	}
	if err := sameRanges(&n.config.Load().Netstack, &c.Netstack); err != nil {
		return err
	}
	n.config.Store(&c)
	n.inForce = true
	var errs []error
	for _, p := range n.parts {
		errs = append(errs, p.set(&c))
	}
	return errors.Join(errs...)
}

// sameRanges gives an error when the node's pod ranges are not those that the stack and the tunnel were made for. A
// Node without any has not been given them again yet.
func sameRanges(before, now *netstack.Config) error {
	if len(now.PodCIDRs) == 0 || slices.Equal(before.PodCIDRs, now.PodCIDRs) {
		return nil
	}
	return fmt.Errorf("the pod ranges of Node %s are %v and were %v: %w; its pods keep their addresses until they are restarted, and are reached on this node alone",
		now.Node, now.PodCIDRs, before.PodCIDRs, ErrStartAnew)
}

// Config is what was set last, and before the first Set what the Node was started with. It is not to be changed.
func (n *Node) Config() *Config { return n.config.Load() }

// Run keeps the clock of the flows until ctx is done.
func (n *Node) Run(ctx context.Context) { n.path.Run(ctx) }

// Close ends the Node. Requests through Ingress get drainTime to finish; what is translated goes on in the next Node
// with the same Flows.
func (n *Node) Close() {
	n.setting.Lock()
	defer n.setting.Unlock()
	if n.closed {
		return
	}
	n.closed = true
	n.stop()
	for _, p := range slices.Backward(n.parts) {
		p.close()
	}
}
