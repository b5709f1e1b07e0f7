// Package nodetest is a cluster in one process: several Nodes over an underlay in memory, and pods that are stacks in
// memory. Packets between the pods take the same steps as on real nodes, except for the kernel's: there are no TAPs
// and no UDP socket of the tunnel.
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/overlay/overlaytest"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// mtu is the MTU of the pods in bytes.
const mtu = 1420

// What all nodes have in common.
var (
	clusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
	serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	// everything is denied to egress, since this machine's network is no part of a Cluster.
	everything = []netstack.Destination{{Range: netip.MustParsePrefix("0.0.0.0/0")}, {Range: netip.MustParsePrefix("::/0")}}
	// DNS are the addresses of cluster DNS.
	DNS = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}
)

// Cluster is a cluster of Members.
type Cluster struct {
	Underlay *overlaytest.Underlay
	// Members are the nodes; the first is n1.
	Members []*Member
	// Policies are in force from the next Serve on. A pod's label "name" is its name.
	Policies []*policy.Policy

	t        testing.TB
	services []*services.Service
}

// Member is one node of a Cluster.
type Member struct {
	*node.Node
	Name string
	// Addr is the node's address on the underlay.
	Addr netip.Addr
	// Exits says from which addresses pods leave, from the next Set on.
	Exits exit.Pods

	cluster *Cluster
	number  int
	held    node.Held
	memory  []byte // the flow memory
	pods    []*Pod
	host    host
}

// Pod is a pod in memory.
type Pod struct {
	*netstacktest.Pod
	Name  string
	Node  string
	Addrs []netip.Addr // one per family

	mac packet.MAC
	dev *netstacktest.Device
}

// New starts a Cluster with the given number of nodes. The Cluster ends with the test. Node i has the pod ranges
// 10.244.i.0/24 and fd00:10:244:i::/64, and the address 192.0.2.i.
func New(t testing.TB, nodes int) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Underlay: overlaytest.New(1)}
	t.Cleanup(c.Underlay.Close)
	for i := 1; i <= nodes; i++ {
		m := &Member{
			cluster: c, number: i, Name: fmt.Sprint("n", i), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
			memory: make([]byte, flow.Size(4096)),
		}
		poller, err := poll.New(1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = poller.Close() })
		m.held = node.Held{
			Key: overlay.NewPrivateKey(), Bind: c.Underlay.Bind(m.endpoint()), Poller: poller, Listen: &m.host,
			HostAddrs: m.host.follow, DenyEgress: everything,
			Upstreams: func() ([]netip.AddrPort, error) { return nil, nil }, // nothing outside can be reached
		}
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		m.start()
		t.Cleanup(func() {
			m.Close()
			for _, p := range m.pods {
				p.Close()
			}
		})
	}
	return c
}

// ID returns the peer's ID of the node, which is a hash as that of a real node: small ones mean something else.
func (m *Member) ID() uint64 { return 0x9e3779b97f4a7c15 * uint64(m.number) }

func (m *Member) endpoint() netip.AddrPort { return netip.AddrPortFrom(m.Addr, 51820) }

func (m *Member) podCIDRs() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(m.number), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: 0x02, 5: 0x44, 7: byte(m.number)}), 64),
	}
}

// start starts the Node on the memory and pods that the Member has kept, and applies the cluster's state.
func (m *Member) start() {
	t := m.cluster.t
	t.Helper()
	var err error
	if m.held.Flows, err = flow.Open(m.memory, flow.Options{}); err != nil {
		t.Fatal(err)
	}
	if m.Node, err = node.Start(m.held, m.Config()); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.pods {
		p.dev = p.dev.Again()
		m.attach(p)
	}
	m.set()
}

// Restart ends the Node and starts the next one, which finds the flows and pods of the last one.
func (m *Member) Restart() {
	m.cluster.t.Helper()
	m.Close()
	m.start()
}

// RestartWith is Restart with other settings, which change edits.
func (m *Member) RestartWith(change func(*node.Held)) {
	m.cluster.t.Helper()
	change(&m.held)
	m.Restart()
}

// Capture ends the Node and returns a Mesh with the Node's key. The Mesh sends the other nodes whatever the test
// wants. got receives what they send; the packets are borrowed. The member cannot be used any more.
func (m *Member) Capture(got func(peer uint64, packets [][]byte)) *overlay.Mesh {
	t := m.cluster.t
	t.Helper()
	m.Close()
	var stack []netip.Addr
	for _, r := range m.podCIDRs() {
		stack = append(stack, addressing.Stack(r))
	}
	mesh, err := overlay.New(overlay.Options{PrivateKey: m.held.Key, Bind: m.cluster.Underlay.Bind(m.endpoint()), StackAddrs: stack, Receive: got})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Close() })
	if err := mesh.Set(m.Config().Overlay); err != nil {
		t.Fatal(err)
	}
	return mesh
}

func (m *Member) set() {
	m.cluster.t.Helper()
	if err := m.Set(m.Config()); err != nil {
		m.cluster.t.Fatal(err)
	}
}

// Config returns the node's Config for the cluster's state.
func (m *Member) Config() node.Config {
	c := node.Config{
		Netstack: netstack.Config{
			Node: m.Name, PodCIDRs: m.podCIDRs(), NodeAddrs: []netip.Addr{m.Addr},
			ClusterCIDRs: clusterCIDRs, ServiceCIDRs: serviceCIDRs, LocalAddrs: DNS, MTU: mtu,
		},
		Services: services.Config{
			Node: m.Name, OwnAddrs: []netip.Addr{m.Addr}, ServiceCIDRs: serviceCIDRs, ClusterCIDRs: clusterCIDRs, DNSAddrs: DNS,
			Services: roll.From(m.cluster.services),
		},
		DNS: dns.Config{Addrs: DNS}, Exits: m.Exits, Policy: policy.Config{Policies: m.cluster.Policies},
	}
	var elsewhere []*policy.Pod
	for _, other := range m.cluster.Members {
		n := policy.Node{Name: other.Name, Pods: other.podCIDRs(), Addrs: []netip.Addr{other.Addr}}
		for _, r := range other.podCIDRs() {
			n.Agent, n.Host = append(n.Agent, addressing.Stack(r)), append(n.Host, addressing.Host(r))
		}
		c.Policy.Nodes = append(c.Policy.Nodes, n)
		for _, p := range other.pods {
			pod := &policy.Pod{Namespace: "default", Name: p.Name, UID: p.Name, Node: other.Name, Labels: law.Labels{{Key: "name", Value: p.Name}}, Addrs: p.Addrs}
			if other == m {
				c.Policy.Own = append(c.Policy.Own, pod)
			} else {
				elsewhere = append(elsewhere, pod)
			}
		}
	}
	c.Policy.Others = roll.From(elsewhere)
	for _, s := range m.cluster.services {
		c.DNS.Services = append(c.DNS.Services, &dns.Service{Namespace: s.Namespace, Name: s.Name, ClusterIPs: s.ClusterIPs})
	}
	for _, other := range m.cluster.Members {
		c.Services.NodeAddrs, c.Services.NodeNames = append(c.Services.NodeAddrs, other.Addr), append(c.Services.NodeNames, other.Name)
		if other == m {
			continue
		}
		ranges := other.podCIDRs()
		c.Netstack.Peers = append(c.Netstack.Peers, netstack.PeerRoute{
			ID: other.ID(), Name: other.Name, PodCIDRs: ranges, NodeAddrs: []netip.Addr{other.Addr}, Encap: true, SendsPartial: true,
		})
		p := overlay.Peer{
			ID: other.ID(), Name: other.Name, PublicKey: other.held.Key.Public(), Endpoint: other.endpoint(),
			Prefixes: append(ranges, netip.PrefixFrom(other.Addr, 32)), Tapestry: true, TakesPartial: true,
		}
		for _, r := range ranges {
			p.StackAddrs = append(p.StackAddrs, addressing.Stack(r))
		}
		c.Overlay.Peers = append(c.Overlay.Peers, p)
	}
	return c
}

// Pod attaches a pod to the node. The pod's addresses end in last, which must be at least 3.
func (m *Member) Pod(last byte) *Pod {
	t := m.cluster.t
	t.Helper()
	p := &Pod{Name: fmt.Sprintf("%s-%d", m.Name, last), Node: m.Name, mac: packet.MAC{2, 0, 0, 0, byte(m.number), last}, dev: netstacktest.NewDevice()}
	for _, r := range m.podCIDRs() {
		b := r.Addr().AsSlice()
		b[len(b)-1] = last
		a, _ := netip.AddrFromSlice(b)
		p.Addrs = append(p.Addrs, a)
	}
	var err error
	if p.Pod, err = netstacktest.NewPod(p.dev, p.mac, tap.RouterMAC, mtu, p.Addrs...); err != nil {
		t.Fatal(err)
	}
	m.pods = append(m.pods, p)
	m.attach(p)
	return p
}

func (m *Member) attach(p *Pod) {
	m.cluster.t.Helper()
	if err := m.Attach(netstack.AttachmentConfig{Name: "default/" + p.Name, UID: p.Name, MAC: p.mac, Addrs: p.Addrs}, p.dev); err != nil {
		m.cluster.t.Fatal(err)
	}
}

// Serve replaces the cluster's Services on all nodes.
func (c *Cluster) Serve(list ...*services.Service) {
	c.t.Helper()
	c.services = list
	for _, m := range c.Members {
		m.set()
	}
}

// Endpoints returns ready endpoints for the pods, all with the given ports.
func Endpoints(ports []services.EndpointPort, pods ...*Pod) (list []services.Endpoint) {
	for _, p := range pods {
		for _, a := range p.Addrs {
			list = append(list, services.Endpoint{Addr: a, ID: p.Name, Node: p.Node, Ready: true, Serving: true, Ports: ports})
		}
	}
	return list
}

// HostSocket returns the address of the node's IPv4 socket for a NodePort, "tcp" or "udp". It returns false if there
// is none.
func (m *Member) HostSocket(network string, port uint16) (netip.AddrPort, bool) {
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	at, ok := m.host.sockets[fmt.Sprint(network, "4:", port)]
	return at, ok
}

// AttachHostTAP attaches a host TAP and returns the host's end of it.
func (m *Member) AttachHostTAP() *netstacktest.Device {
	m.cluster.t.Helper()
	dev := netstacktest.NewDevice()
	if err := m.Attach(netstack.AttachmentConfig{Name: hosttap.Key, Kind: netstack.HostTAP, MAC: tap.HostMAC, Addrs: hosttap.Addrs(m.podCIDRs())}, dev); err != nil {
		m.cluster.t.Fatal(err)
	}
	return dev
}

// SetHostAddrs sets the addresses of the host's interfaces. The Node knows them when it returns.
func (m *Member) SetHostAddrs(list ...netip.Addr) {
	m.host.mu.Lock()
	m.host.addrs = list
	changed := m.host.changed
	m.host.mu.Unlock()
	changed(list)
}

// Squat takes a hostPort of IPv4, "tcp" or "udp", so that the node cannot open it until leave is called.
func (m *Member) Squat(network string, port uint16) (leave func()) {
	t := m.cluster.t
	t.Helper()
	var at net.Addr
	var c io.Closer
	if network == "tcp" {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at, c = l.Addr(), l
	} else {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at, c = pc.LocalAddr(), pc
	}
	t.Cleanup(func() { _ = c.Close() })
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	m.host.squats = append(m.host.squats, squat{fmt.Sprint(network, "4:", port), at.String()})
	return func() { _ = c.Close() }
}

// host is a node's own network. Its sockets are on free ports of this machine's loopback address instead of the ports
// that the node asks for.
type host struct {
	mu      sync.Mutex                // guards what follows
	sockets map[string]netip.AddrPort // real address, by network and port such as "tcp4:30080"
	squats  []squat
	addrs   []netip.Addr
	changed func([]netip.Addr) // tells the Node
}

// follow is node.Held.HostAddrs.
func (h *host) follow(ctx context.Context, changed func([]netip.Addr)) error {
	h.mu.Lock()
	list := h.addrs
	h.changed = changed
	h.mu.Unlock()
	changed(list)
	<-ctx.Done()
	return ctx.Err()
}

// squat is a socket of another program.
type squat struct{ socket, address string }

var errNoHost = errors.New("nodetest: a host has only IPv4 sockets")

// place returns the key of a socket in host.sockets, and the real address to listen on.
func (h *host) place(network, address string) (socket, at string, err error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", err
	}
	socket, at = network+":"+port, "127.0.0.1:0"
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.squats {
		if s.socket == socket {
			at = s.address
		}
	}
	return socket, at, nil
}

func (h *host) note(socket string, at net.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sockets == nil {
		h.sockets = map[string]netip.AddrPort{}
	}
	h.sockets[socket] = netip.MustParseAddrPort(at.String())
}

// Listen implements nodeport.Listener.
func (h *host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network != "tcp4" {
		return nil, errNoHost
	}
	socket, at, err := h.place(network, address)
	if err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, at)
	if err != nil {
		return nil, err
	}
	h.note(socket, l.Addr())
	return l, nil
}

// Release implements nodeport.Listener.
func (*host) Release(string, string) {}

// ListenPacket implements nodeport.Listener.
func (h *host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	if network != "udp4" {
		return nil, errNoHost
	}
	socket, at, err := h.place(network, address)
	if err != nil {
		return nil, err
	}
	c, err := new(net.ListenConfig).ListenPacket(ctx, network, at)
	if err != nil {
		return nil, err
	}
	h.note(socket, c.LocalAddr())
	return c, nil
}
