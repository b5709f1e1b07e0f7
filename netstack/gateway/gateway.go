// Package gateway ends connections on a node, in a gVisor stack that is one more Port of the switch: it listens on the
// node's own addresses, and dials pods, also with a client's address. What goes between a pod of this node and a host
// socket comes past the stack: it sorts that to the relays for TCP, UDP and echoes.
//
// The stack sends superframes and gets them (HostGSO), so that TCP through it costs per 64 KiB, not per segment. It
// knows nothing of Services or routes: packets go to the pipeline by Options.Send, and come by Deliver.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/pingrelay"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/reassemble"
	"tapestry.dev/tapestry/netstack/refusal"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/netstack/udprelay"
)

const nic tcpip.NICID = 1

// timeWait is how long the stack keeps the addresses and ports of a connection that it ended first. A client that comes
// back from the same port in that time would be seen with another one. What the time is for (RFC 9293 3.6.1), late
// segments of the old connection, the pod's own kernel sorts out by their numbers.
const timeWait = time.Millisecond

// maxPieces is how many packets that pods send outside in fragments may be incomplete at once: 9 MiB of them.
const maxPieces = 128

// firstPort is the first one that the stack takes by itself; gVisor's own default.
const firstPort = 16000

// Options are what a Gateway needs for its life.
type Options struct {
	// Send carries a superframe that the stack sent through the pipeline. The frame is Send's; it returns a buffer of the
	// same capacity in exchange.
	Send func(frame []byte) []byte
	// SendIP does the same with an IP packet that is borrowed.
	SendIP func(ip []byte, vnet packet.VNetHdr)
	// MTU is the pods' MTU until Set says otherwise; 0 is IPv6's minimum.
	MTU int
	// Idle is how long an idle UDP conversation with the outside is kept; 0 is two minutes (RFC 4787 REQ-5).
	Idle time.Duration
	// Poller watches host sockets. It stays the caller's, who closes it after the Gateway; nil makes one of a single loop,
	// which is the Gateway's own.
	Poller *poll.Poller
	// Refusals bounds the ICMP errors that are sent; nil makes a bound of the Gateway's own.
	Refusals *refusal.Limit
	// Pace is tcprelay.Options.Pace.
	Pace func(pod packet.Addr) (limited bool, wait time.Duration)
}

// Config is the whole desired state.
type Config struct {
	// Gateway are the node's gateway addresses, at most one per family: where dialling without a client comes from.
	Gateway []netip.Addr
	// Local are further addresses to listen on, that of cluster DNS among them.
	Local []netip.Addr
	MTU   int
}

// Gateway is the stack with what hangs on it. Its methods are safe for concurrent use.
type Gateway struct {
	// sendIP carries an IP packet that it borrows through the pipeline.
	sendIP func(ip []byte, vnet packet.VNetHdr)
	stack  *stack.Stack
	link   *linkEndpoint
	relay  *tcprelay.Relay
	udp    *udprelay.Relay
	pings  *pingrelay.Relay
	pieces *reassemble.Table

	refusals *refusal.Limit
	keeping  keeping
	dials    dials

	poller    *poll.Poller
	ownPoller bool                                 // to be closed
	addrs     atomic.Pointer[map[packet.Addr]bool] // those of the stack; replaced by Set

	ctx    context.Context // ends with the gateway: stops every relay
	cancel context.CancelFunc
	relays sync.WaitGroup

	mu     sync.Mutex // guards the rest, and changes of addrs
	own    []netip.Addr
	closed bool
}

// New makes a Gateway without addresses.
func New(o Options) (*Gateway, error) {
	if o.Send == nil || o.SendIP == nil {
		return nil, errors.New("gateway: Options.Send and SendIP are required")
	}
	g := &Gateway{sendIP: o.SendIP, poller: o.Poller}
	if g.poller == nil {
		var err error
		if g.poller, err = poll.New(1); err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		g.ownPoller = true
	}
	g.addrs.Store(&map[packet.Addr]bool{})
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.link = newLinkEndpoint(o.Send, cmp.Or(o.MTU, header.IPv6MinimumMTU))
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := g.configure(); err != nil {
		g.cancel()
		g.closePoller()
		return nil, fmt.Errorf("gateway: %w", err)
	}
	shares := sharesOf(descriptors())
	g.dials = newDials(shares.dials)
	g.refusals = cmp.Or(o.Refusals, refusal.NewLimit(time.Now, rand.Uint64()))
	g.relay = tcprelay.New(tcprelay.Options{
		Poller: g.poller, Send: o.SendIP, MTU: func() int { return int(g.link.MTU()) }, Refuse: g.refuse, Pace: o.Pace,
		MaxConns: shares.tcp,
	})
	g.udp = udprelay.New(udprelay.Options{
		Poller: g.poller, Send: o.SendIP, Refuse: g.refuse, MTU: func() int { return int(g.link.MTU()) }, Idle: cmp.Or(o.Idle, 2*time.Minute),
		MaxSockets: shares.udp,
	})
	g.spawn(func() { g.udp.Run(g.ctx) })
	g.pings = pingrelay.New(pingrelay.Options{
		Poller: g.poller, Send: o.SendIP, Refuse: g.refuse, MTU: func() int { return int(g.link.MTU()) }, Max: shares.pings,
	})
	g.spawn(func() { g.pings.Run(g.ctx) })
	g.pieces = reassemble.New(reassemble.Options{Max: maxPieces})
	return g, nil
}

func (g *Gateway) configure() error {
	s := g.stack
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	linger := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&receive, &send, &sack, &moderate, &linger} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	if err := s.CreateNIC(nic, g.link); err != nil {
		return fmt.Errorf("create the NIC: %s", err)
	}
	// Promiscuous and spoofing: it accepts whatever the pipeline routes here and dials pods as their client.
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %s", err)
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("set spoofing: %s", err)
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	// The others are tcprelay's.
	if err := s.SetPortRange(firstPort, tcprelay.FirstPort-1); err != nil {
		return fmt.Errorf("set the range of ports: %s", err)
	}
	return nil
}

// Set brings the stack's addresses and MTU to those of c. Calling it again with the same is harmless.
func (g *Gateway) Set(c Config) error {
	want := map[packet.Addr]bool{}
	for _, a := range append(slices.Clone(c.Gateway), c.Local...) {
		want[packet.AddrFrom(a)] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own = slices.Clone(c.Gateway)
	if c.MTU > 0 {
		g.link.SetMTU(uint32(c.MTU))
	}
	has := maps.Clone(*g.addrs.Load())
	defer func() { g.addrs.Store(&has) }()
	for key := range want {
		if has[key] {
			continue
		}
		a := key.Netip()
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a), AddressWithPrefix: toAddress(a).WithPrefix()}
		if err := g.stack.AddProtocolAddress(nic, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add the gateway's address %s: %s", a, err)
		}
		has[key] = true
	}
	for key := range has {
		if want[key] {
			continue
		}
		if err := g.stack.RemoveAddress(nic, toAddress(key.Netip())); err != nil {
			return fmt.Errorf("remove the gateway's address %s: %s", key, err)
		}
		delete(has, key)
	}
	return nil
}

// owns reports whether a is one of the gateway's own addresses. It takes no lock.
func (g *Gateway) owns(a packet.Addr) bool { return (*g.addrs.Load())[a] }

// spawn runs f beside, unless the gateway is closing, which waits for it.
func (g *Gateway) spawn(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.relays.Add(1)
	go func() {
		defer g.relays.Done()
		f()
	}()
	return true
}

// Close cuts every connection and waits for what runs.
func (g *Gateway) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	_ = g.relay.Close()
	g.udp.Close()
	g.pings.Close()
	g.relays.Wait()
	g.stack.Close()
	g.stack.Wait()
	g.closePoller()
}

func (g *Gateway) closePoller() {
	if g.ownPoller {
		_ = g.poller.Close()
	}
}

// Forget ends what was relayed for a pod that is gone.
func (g *Gateway) Forget(pod netip.Addr) {
	g.relay.Forget(pod)
	g.udp.Forget(pod)
	g.pings.Forget(pod)
}

// Join carries an accepted connection to a pod of this node, which sees it come from client, until either ended or ctx
// did. An invalid client means the gateway's own address. The connection is taken over, unless Join returns an error.
func (g *Gateway) Join(ctx context.Context, conn *net.TCPConn, client, to netip.AddrPort) error {
	client, err := g.clientFor(client, to)
	if err != nil {
		return err
	}
	err = g.relay.Join(ctx, conn, client, to)
	if errors.Is(err, tcprelay.ErrInUse) && client.Port() != 0 {
		err = g.relay.Join(ctx, conn, netip.AddrPortFrom(client.Addr(), 0), to)
	}
	return err
}

// Listen opens a TCP listener on one of the gateway's addresses.
func (g *Gateway) Listen(addr netip.AddrPort) (net.Listener, error) {
	if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen on %s: name one of the gateway's addresses; any would also catch what pods send outside", addr)
	}
	return gonet.ListenTCP(g.stack, toFullAddress(addr), protocolOf(addr.Addr()))
}

// ListenPacket opens a UDP socket on one of the gateway's addresses.
func (g *Gateway) ListenPacket(addr netip.AddrPort) (net.PacketConn, error) {
	if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen on %s: name one of the gateway's addresses; any would also catch what pods send outside", addr)
	}
	local := toFullAddress(addr)
	return gonet.DialUDP(g.stack, &local, nil, protocolOf(addr.Addr()))
}

// Dial connects to a pod, "tcp" or "udp". client is the address the pod is to see: its port is used when it is free,
// else another one. An invalid client means the gateway's own address.
func (g *Gateway) Dial(ctx context.Context, network string, client, to netip.AddrPort) (net.Conn, error) {
	to = unmap(to)
	own := !client.Addr().IsValid() // what the node itself opens is bounded by whoever has it do so
	client, err := g.clientFor(client, to)
	if err != nil {
		return nil, err
	}
	c, err := g.dial(ctx, network, client, to, own)
	if err != nil && client.Port() != 0 && ctx.Err() == nil && isPortInUse(err) {
		c, err = g.dial(ctx, network, netip.AddrPortFrom(client.Addr(), 0), to, own)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s as %s: %w", to, client, err)
	}
	return c, nil
}

// clientFor is the address that to shall see: client's, or the gateway's own.
func (g *Gateway) clientFor(client, to netip.AddrPort) (netip.AddrPort, error) {
	to = unmap(to)
	if !client.Addr().IsValid() {
		gate := g.ownAddr(to.Addr())
		if !gate.IsValid() {
			return client, fmt.Errorf("dial %s: this node has no pod range of that family", to)
		}
		client = netip.AddrPortFrom(gate, 0)
	}
	client = unmap(client)
	if client.Addr().Is4() != to.Addr().Is4() {
		return client, fmt.Errorf("dial %s as %s: the addresses are of different families", to, client)
	}
	return client, nil
}

// ownAddr is the gateway address of the family of like, or invalid.
func (g *Gateway) ownAddr(like netip.Addr) netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.own {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (g *Gateway) dial(ctx context.Context, network string, client, to netip.AddrPort, own bool) (net.Conn, error) {
	local, remote := toFullAddress(client), toFullAddress(to)
	switch network {
	case "tcp", "tcp4", "tcp6":
		c, err := g.dialTCP(ctx, local, remote, own)
		if err != nil {
			return nil, err
		}
		return c, nil
	case "udp", "udp4", "udp6":
		c, err := gonet.DialUDP(g.stack, &local, &remote, protocolOf(to.Addr()))
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, net.UnknownNetworkError(network)
}

// isPortInUse also recognises gVisor's error where gonet gives it only as text.
func isPortInUse(err error) bool {
	return errors.Is(err, errPortInUse) || strings.HasSuffix(err.Error(), (&tcpip.ErrPortInUse{}).String())
}

func unmap(ap netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) }

func toAddress(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func toFullAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: toAddress(ap.Addr()), Port: ap.Port()}
}

func fromAddress(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
