// Package stack ends connections on a node, in the node's gVisor stack: it listens on the node's own addresses, and
// dials pods, also from a client's address. Traffic between a pod of this node and a host socket does not pass through
// the gVisor stack, and neither does UDP between clients of host sockets and pods. The package hands it to the relays.
//
// The stack sends and receives superframes (HostGSO), so that TCP through it costs work for each 64 KiB, not for each
// segment. It does not know Services or routes: packets leave to the pipeline by Options.Send and arrive by Deliver.
package stack

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
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gvisor "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"tapestry.dev/tapestry/netstack/clientrelay"
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
// back from the same port within this time would appear to the pod with another port. TIME_WAIT protects from late
// segments of the old connection (RFC 9293 3.6.1), which the pod's own kernel recognises by their numbers.
const timeWait = time.Millisecond

// maxPieces is how many fragmented packets of pods may be incomplete at once. They take 9 MiB.
const maxPieces = 128

// firstPort is the first port that the stack picks by itself, as by gVisor's default.
const firstPort = 16000

// Options of a Stack. Send and SendIP are required.
type Options struct {
	// Send sends a superframe of the stack through the pipeline. Send owns the frame, and returns a buffer of the same
	// capacity in exchange.
	Send func(frame []byte) []byte
	// SendIP sends an IP packet through the pipeline. It must not keep ip.
	SendIP func(ip []byte, vnet packet.VNetHdr)
	// MTU is the pods' MTU, in bytes, until Set changes it; 0 means the minimum of IPv6.
	MTU int
	// Idle is how long an idle UDP conversation with the outside is kept; 0 means two minutes (RFC 4787 REQ-5).
	Idle time.Duration
	// Poller watches host sockets. The caller closes it after the Stack. If it is nil, the Stack makes a Poller of one
	// loop and closes it.
	Poller *poll.Poller
	// Refusals bounds the ICMP errors that are sent. If it is nil, the Stack makes a Limit.
	Refusals *refusal.Limit
	// Owner returns the owner that is charged for what an address uses of the Stack. If it is nil, each address is its
	// own owner.
	Owner func(packet.Addr) packet.Addr
	// Shares bounds what pods and clients use.
	Shares Shares
	// Pace is the Pace of tcprelay.Options.
	Pace func(pod packet.Addr) (limited bool, wait time.Duration)
	// Far is the Far of tcprelay.Options.
	Far func(pod packet.Addr) (mtu int, ok bool)
	// Asks is the Asks of tcprelay.Options.
	Asks func(packet.Endpoint) bool
	// HoldTCP is the Hold of tcprelay.Options.
	HoldTCP *tcprelay.Hold
	// HoldUDP is the Hold of udprelay.Options.
	HoldUDP *udprelay.Hold
}

// Config is the whole desired state of a Stack.
type Config struct {
	// Addrs are the node's stack addresses, at most one per family. Connections without a client are dialled from them.
	Addrs []netip.Addr
	// Local are further addresses to listen on, such as that of cluster DNS.
	Local []netip.Addr
	MTU   int // of pods, in bytes; 0 leaves it as it is
}

// Stack is the node's gVisor stack with the relays beside it. Its methods are safe for concurrent use.
type Stack struct {
	// sendIP sends an IP packet through the pipeline and does not keep it.
	sendIP func(ip []byte, vnet packet.VNetHdr)
	stack  *gvisor.Stack
	link   *linkEndpoint
	relay  *tcprelay.Relay
	// carried is the relay's Carries.
	carried func(*packet.Tuple) bool
	udp     *udprelay.Relay
	pings   *pingrelay.Relay
	// clients carries UDP of clients of the host's sockets.
	clients *clientrelay.Relay
	pieces  *reassemble.Table

	owner    func(packet.Addr) packet.Addr
	refusals *refusal.Limit
	keeping  keeping
	dials    dials

	poller    *poll.Poller
	ownPoller bool                                 // Close closes poller
	addrs     atomic.Pointer[map[packet.Addr]bool] // the stack's addresses; replaced by Set
	shuns     atomic.Bool                          // Shun was called

	ctx    context.Context // ends with the Stack and stops every relay
	cancel context.CancelFunc
	relays sync.WaitGroup

	mu     sync.Mutex // guards the rest, and changes of addrs
	own    []netip.Addr
	closed bool
}

// New makes a Stack without addresses.
func New(o Options) (*Stack, error) {
	if o.Send == nil || o.SendIP == nil {
		return nil, errors.New("stack: Options.Send and SendIP are required")
	}
	s := &Stack{sendIP: o.SendIP, poller: o.Poller, owner: o.Owner}
	if s.owner == nil {
		s.owner = func(a packet.Addr) packet.Addr { return a }
	}
	if s.poller == nil {
		var err error
		if s.poller, err = poll.New(1); err != nil {
			return nil, fmt.Errorf("stack: %w", err)
		}
		s.ownPoller = true
	}
	s.addrs.Store(&map[packet.Addr]bool{})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.link = newLinkEndpoint(o.Send, cmp.Or(o.MTU, header.IPv6MinimumMTU))
	s.stack = gvisor.New(gvisor.Options{
		NetworkProtocols:   []gvisor.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []gvisor.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.configure(); err != nil {
		s.cancel()
		s.closePoller()
		return nil, fmt.Errorf("stack: %w", err)
	}
	shares := o.Shares.orDefaults()
	s.dials = newDials(shares.Dials)
	s.refusals = cmp.Or(o.Refusals, refusal.NewLimit(time.Now, rand.Uint64()))
	s.relay = tcprelay.New(tcprelay.Options{
		Poller: s.poller, Send: o.SendIP, MTU: func() int { return int(s.link.MTU()) }, Refuse: s.refuse, Pace: o.Pace,
		MaxConns: shares.TCP, Owner: s.owner, Far: o.Far, Asks: o.Asks, Taken: s.keeping.has, Hold: o.HoldTCP,
	})
	s.carried = s.relay.Carries
	s.udp = udprelay.New(udprelay.Options{
		Poller: s.poller, Send: o.SendIP, Refuse: s.refuse, MTU: func() int { return int(s.link.MTU()) }, Idle: cmp.Or(o.Idle, 2*time.Minute),
		MaxSockets: shares.UDP, Owner: s.owner, Hold: o.HoldUDP,
	})
	s.spawn(func() { s.udp.Run(s.ctx) })
	s.pings = pingrelay.New(pingrelay.Options{
		Poller: s.poller, Send: o.SendIP, Refuse: s.refuse, MTU: func() int { return int(s.link.MTU()) }, Max: shares.Pings,
		Owner: s.owner,
	})
	s.spawn(func() { s.pings.Run(s.ctx) })
	s.clients = clientrelay.New(clientrelay.Options{
		Poller: s.poller, Send: o.SendIP, MTU: func() int { return int(s.link.MTU()) }, ClientFor: s.clientFor,
	})
	s.pieces = reassemble.New(reassemble.Options{Max: maxPieces})
	return s, nil
}

func (s *Stack) configure() error {
	g := s.stack
	// A receive buffer begins small and grows as fast as it is read, so what nobody reads stays with the pod.
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: slimBuffer, Max: 4 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	linger := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	for _, o := range []tcpip.SettableTransportProtocolOption{&receive, &send, &sack, &moderate, &linger} {
		if err := g.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	if err := g.CreateNIC(nic, s.link); err != nil {
		return fmt.Errorf("create the NIC: %s", err)
	}
	// Promiscuous mode lets the stack accept whatever the pipeline sends here. Spoofing lets it dial pods from a
	// client's address.
	if err := g.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %s", err)
	}
	if err := g.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("set spoofing: %s", err)
	}
	g.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	// Package tcprelay uses the other ports.
	if err := g.SetPortRange(firstPort, tcprelay.FirstPort-1); err != nil {
		return fmt.Errorf("set the range of ports: %s", err)
	}
	return nil
}

// Set changes the stack's addresses and MTU to those of c. It may be called again with the same Config.
func (s *Stack) Set(c Config) error {
	want := map[packet.Addr]bool{}
	for _, a := range append(slices.Clone(c.Addrs), c.Local...) {
		want[packet.AddrFrom(a)] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = slices.Clone(c.Addrs)
	if c.MTU > 0 {
		s.link.SetMTU(uint32(c.MTU))
	}
	has := maps.Clone(*s.addrs.Load())
	defer func() { s.addrs.Store(&has) }()
	for key := range want {
		if has[key] {
			continue
		}
		a := key.Netip()
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a), AddressWithPrefix: toAddress(a).WithPrefix()}
		if err := s.stack.AddProtocolAddress(nic, pa, gvisor.AddressProperties{}); err != nil {
			return fmt.Errorf("add the stack's address %s: %s", a, err)
		}
		has[key] = true
	}
	for key := range has {
		if want[key] {
			continue
		}
		if err := s.stack.RemoveAddress(nic, toAddress(key.Netip())); err != nil {
			return fmt.Errorf("remove the stack's address %s: %s", key, err)
		}
		delete(has, key)
	}
	return nil
}

// owns reports whether a is one of the stack's own addresses. It takes no lock.
func (s *Stack) owns(a packet.Addr) bool { return (*s.addrs.Load())[a] }

// spawn runs f in a goroutine, for which Close waits. It returns false, and does not run f, after Close has begun.
func (s *Stack) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.relays.Add(1)
	go func() {
		defer s.relays.Done()
		f()
	}()
	return true
}

// Resume takes over what the process before relayed for pods that are here, and for clients of pods that are Far,
// before any frame of a pod is delivered. It goes on with that when begin is closed, from when on frames are delivered,
// or with nil at once. ports is how many ports of pods outside are the same as before.
func (s *Stack) Resume(here func(pod netip.Addr) bool, begin <-chan struct{}) (conns tcprelay.Resumed, ports int) {
	conns, ports = s.relay.Resume(here), s.udp.Resume(here)
	if conns.Resumed > 0 {
		s.spawn(func() {
			if begin != nil {
				<-begin
			}
			s.relay.GoOn()
		})
	}
	return conns, ports
}

// KeepAgain has the sockets of what is relayed held once more, by somebody new.
func (s *Stack) KeepAgain() {
	s.relay.KeepAgain()
	s.udp.KeepAgain()
}

// Close ends every connection, but for those that go on in the next process, and waits for all goroutines of the Stack.
func (s *Stack) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	_ = s.relay.Close()
	s.udp.Close()
	s.pings.Close()
	s.relays.Wait()
	s.stack.Close()
	s.stack.Wait()
	s.closePoller()
}

func (s *Stack) closePoller() {
	if s.ownPoller {
		_ = s.poller.Close()
	}
}

// Forget ends what is relayed for a pod that was removed.
func (s *Stack) Forget(pod netip.Addr) {
	s.relay.Forget(pod)
	s.udp.Forget(pod)
	s.pings.Forget(pod)
}

// Join joins an accepted connection to a pod, which sees it come from client, and carries it until it ends or ctx does.
// An invalid client means the stack's own address. Join calls answered as tcprelay.Relay.Join does. It takes
// over conn unless it returns an error. A *tcprelay.RefusedError has the client's connection, in place of conn.
func (s *Stack) Join(ctx context.Context, conn *net.TCPConn, client, to netip.AddrPort, answered func(bool)) error {
	client, err := s.clientFor(client, to)
	if err != nil {
		return err
	}
	return withPort(client, func(client netip.AddrPort) error { return s.relay.Join(ctx, conn, client, to, answered) })
}

// Adopt is Join for a client's socket, and does not wait, as tcprelay.Relay.Adopt.
func (s *Stack) Adopt(conn int, client, to netip.AddrPort, told tcprelay.Told) error {
	client, err := s.clientFor(client, to)
	if err != nil {
		return err
	}
	return withPort(client, func(client netip.AddrPort) error { return s.relay.Adopt(conn, client, to, told) })
}

// Accept calls each for the connections that a TCP listener of the host accepts, and which Adopt may take. It takes
// over l unless it returns an error. See poll.Poller.Accept.
func (s *Stack) Accept(l net.Listener, each func(fd int, client netip.AddrPort)) (*poll.Acceptor, error) {
	c, ok := l.(poll.Listener)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	if err := tcprelay.Prepare(c); err != nil {
		return nil, err
	}
	return s.poller.Accept(c, each)
}

// Behind is the Behind of tcprelay.Relay.
func (s *Stack) Behind(client, at netip.AddrPort) (pod netip.Addr, ok bool) {
	return s.relay.Behind(client, at)
}

// withPort joins a client as itself, or with another port if its own is in use.
func withPort(client netip.AddrPort, join func(client netip.AddrPort) error) error {
	err := join(client)
	if errors.Is(err, tcprelay.ErrInUse) && client.Port() != 0 {
		err = join(netip.AddrPortFrom(client.Addr(), 0))
	}
	return err
}

// Door makes a UDP socket of the host one through which clients reach pods, and takes it over. The caller closes it
// before the Stack.
func (s *Stack) Door(conn *net.UDPConn) (*clientrelay.Door, error) { return s.clients.Open(conn) }

// Listen opens a TCP listener on one of the stack's addresses.
func (s *Stack) Listen(addr netip.AddrPort) (net.Listener, error) {
	if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen on %s: name one of the stack's addresses; any would also catch what pods send outside", addr)
	}
	return gonet.ListenTCP(s.stack, toFullAddress(addr), protocolOf(addr.Addr()))
}

// ListenPacket opens a UDP socket on one of the stack's addresses.
func (s *Stack) ListenPacket(addr netip.AddrPort) (net.PacketConn, error) {
	if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen on %s: name one of the stack's addresses; any would also catch what pods send outside", addr)
	}
	local := toFullAddress(addr)
	return gonet.DialUDP(s.stack, &local, nil, protocolOf(addr.Addr()))
}

// Dial connects to a pod over network, "tcp" or "udp". client is the address that the pod sees. Its port is used if it
// is free, and another one otherwise. An invalid client means the stack's own address.
func (s *Stack) Dial(ctx context.Context, network string, client, to netip.AddrPort) (net.Conn, error) {
	to = unmap(to)
	own := !client.Addr().IsValid() // connections of the node itself are bounded by their callers
	client, err := s.clientFor(client, to)
	if err != nil {
		return nil, err
	}
	c, err := s.dial(ctx, network, client, to, own)
	if err != nil && client.Port() != 0 && ctx.Err() == nil && errors.Is(err, errPortInUse) {
		c, err = s.dial(ctx, network, netip.AddrPortFrom(client.Addr(), 0), to, own)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s as %s: %w", to, client, err)
	}
	return c, nil
}

// clientFor returns the address that the pod at to sees: client, or the stack's own address if client is invalid.
func (s *Stack) clientFor(client, to netip.AddrPort) (netip.AddrPort, error) {
	to = unmap(to)
	if !client.Addr().IsValid() {
		own := s.ownAddr(to.Addr())
		if !own.IsValid() {
			return client, fmt.Errorf("dial %s: this node has no pod range of that family", to)
		}
		client = netip.AddrPortFrom(own, 0)
	}
	client = unmap(client)
	if client.Addr().Is4() != to.Addr().Is4() {
		return client, fmt.Errorf("dial %s as %s: the addresses are of different families", to, client)
	}
	return client, nil
}

// ownAddr returns the stack address of the same family as like, or an invalid Addr.
func (s *Stack) ownAddr(like netip.Addr) netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.own {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (s *Stack) dial(ctx context.Context, network string, client, to netip.AddrPort, own bool) (net.Conn, error) {
	local, remote := toFullAddress(client), toFullAddress(to)
	switch network {
	case "tcp", "tcp4", "tcp6":
		c, err := s.dialTCP(ctx, local, remote, own)
		if err != nil {
			return nil, err
		}
		return c, nil
	case "udp", "udp4", "udp6":
		return s.dialUDP(local, remote, to.Addr())
	}
	return nil, net.UnknownNetworkError(network)
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
