package netstack

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// balancer is a Balancer made of two maps.
type balancer struct {
	picks  map[netip.AddrPort]packet.Choice
	states map[uint64]packet.BackendState
	moved  map[netip.AddrPort]bool // frontends that belong to another Service than before
	// exposed are the addresses for clients outside.
	exposed map[netip.Addr]bool
}

func (b *balancer) Pick(t *packet.Tuple) packet.Choice {
	return b.picks[netip.AddrPortFrom(t.Dst.Netip(), t.DstPort)]
}

func (b *balancer) Backend(id uint64, _ packet.Addr) packet.BackendState { return b.states[id] }

func (b *balancer) Leads(t *packet.Tuple, _ uint64, _ uint16) bool {
	a := netip.AddrPortFrom(t.Dst.Netip(), t.DstPort)
	return b.picks[a].Kind == packet.Picked && !b.moved[a]
}

func (b *balancer) IsEndpoint(to packet.Endpoint, _ packet.Proto) bool {
	for _, c := range b.picks {
		if c.To == to {
			return true
		}
	}
	return false
}

func (b *balancer) Exposed(a packet.Addr) bool { return b.exposed[a.Netip()] }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func picked(id uint64, to string) packet.Choice {
	return packet.Choice{Kind: packet.Picked, Backend: id, To: packet.EndpointFrom(ap(to))}
}

const (
	node2 uint64 = 0x2222222222222222
	stock uint64 = 0x9999999999999999
)

// world is one node with two pods and the host TAP, a peer that is a Tapestry node and one that is stock WireGuard.
type world struct {
	t        *testing.T
	clock    *atomic.Uint32 // of the flow table
	path     *Path
	link     *netstacktest.Link
	balancer *balancer
	policy   Policy
	config   Config
	devices  map[string]*netstacktest.Device
	macs     map[string]packet.MAC
}

func newWorld(t *testing.T) *world { return newWorldWith(t, nil) }

// newWorldWith is newWorld with an Observer.
func newWorldWith(t *testing.T, o Observer) *world {
	return newWorldOver(t, o, make([]byte, flow.Size(4096)))
}

// newWorldOver is newWorldWith over the flow memory of an earlier node.
func newWorldOver(t *testing.T, o Observer, memory []byte) *world {
	t.Helper()
	clock := &atomic.Uint32{} // seconds
	clock.Store(1000)
	flows, err := flow.Open(memory, flow.Options{Clock: clock.Load})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, clock: clock, link: netstacktest.NewLink(1440), devices: map[string]*netstacktest.Device{}, macs: map[string]packet.MAC{}}
	w.path, err = New(Options{Flows: flows, Link: w.link, Observer: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.path.Close() })
	w.config = Config{
		Node:         "node-1",
		PodCIDRs:     addresstest.Prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
		NodeAddrs:    addresstest.Addrs("172.31.0.11"),
		ClusterCIDRs: addresstest.Prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		ServiceCIDRs: addresstest.Prefixes("10.96.0.0/16", "fd00:10:96::/112"),
		LocalAddrs:   addresstest.Addrs("10.96.0.10"),
		MTU:          1420,
		Peers: []PeerRoute{
			{ID: node2, Name: "node-2", PodCIDRs: addresstest.Prefixes("10.244.2.0/24", "fd00:10:244:2::/64"), NodeAddrs: addresstest.Addrs("172.31.0.12"), Encap: true, SendsPartial: true},
			{ID: stock, Name: "stock", PodCIDRs: addresstest.Prefixes("10.244.9.0/24")},
		},
	}
	w.balancer = &balancer{
		picks: map[netip.AddrPort]packet.Choice{
			ap("10.96.0.1:80"):       picked(1, "10.244.1.11:8080"),
			ap("10.96.0.2:80"):       picked(2, "10.244.2.10:8080"),
			ap("10.96.0.3:80"):       {Kind: packet.NoEndpoints},
			ap("10.96.0.1:81"):       {Kind: packet.UnknownPort},
			ap("10.96.0.4:80"):       picked(3, "10.244.1.10:8080"), // pod a itself
			ap("10.96.0.5:53"):       picked(2, "10.244.2.10:5353"),
			ap("[fd00:10:96::1]:80"): picked(4, "[fd00:10:244:1::11]:8080"),
			ap("10.96.0.6:80"):       picked(1, "10.244.1.11:8080"), // the same backend as 10.96.0.1
			ap("10.96.0.7:80"):       {Kind: packet.DropLocal},
			ap("10.96.0.8:80"):       {Kind: packet.DropSource},
			ap("10.96.0.9:80"):       picked(5, "10.244.1.99:8080"), // an address that nobody has
			ap("172.31.0.11:54323"):  picked(1, "10.244.1.11:8080"),
			ap("172.31.0.11:30080"):  picked(2, "10.244.2.10:8080"),
		},
		states: map[uint64]packet.BackendState{1: packet.BackendReady, 2: packet.BackendReady, 3: packet.BackendReady, 4: packet.BackendReady, 5: packet.BackendReady},
	}
	w.attach("a", PodTAP, "10.244.1.10", "fd00:10:244:1::10")
	w.attach("b", PodTAP, "10.244.1.11", "fd00:10:244:1::11")
	w.attach("host", HostTAP, "10.244.1.2")
	w.set()
	return w
}

func (w *world) set() {
	w.t.Helper()
	if err := w.path.Set(w.config, w.balancer, w.policy); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) attach(name string, kind AttachmentKind, ips ...string) {
	w.t.Helper()
	d := netstacktest.NewDevice()
	mac := packet.MAC{2, 0, 0, 0, 0, byte(len(w.devices) + 1)}
	w.devices[name], w.macs[name] = d, mac
	if err := w.path.Attach(AttachmentConfig{Name: name, Kind: kind, MAC: mac, Addrs: addresstest.Addrs(ips...)}, d); err != nil {
		w.t.Fatal(err)
	}
}

// from sends a packet from a pod, from the host, or from a peer ("node-2", or "node-2 encap" for encapsulated).
func (w *world) from(who string, s netstacktest.Spec) {
	w.t.Helper()
	if d := w.devices[who]; d != nil {
		d.Send(s.Frame(w.macs[who], tap.RouterMAC))
		return
	}
	switch who {
	case "node-2":
		w.path.FromLink(node2, [][]byte{s.IP()})
	case "node-2 encap":
		w.path.FromLink(node2, [][]byte{encapsulate(s, "10.244.2.1", "10.244.1.1")})
	case "stock":
		w.path.FromLink(stock, [][]byte{s.IP()})
	default:
		w.t.Fatalf("nobody is called %s", who)
	}
}

func encapsulate(s netstacktest.Spec, src, dst string) []byte { return encapsulateIP(s.IP(), src, dst) }

func encapsulateIP(inner []byte, src, dst string) []byte {
	proto := packet.IPIP
	if inner[0]>>4 == 6 {
		proto = packet.IPv6IP
	}
	// Fragment needs no L4 header, and so fits an outer packet.
	outer := netstacktest.Spec{Src: netip.AddrPortFrom(netip.MustParseAddr(src), 0), Dst: netip.AddrPortFrom(netip.MustParseAddr(dst), 0), Proto: proto, FragAt: 8, Payload: inner}
	ip := outer.IP()
	ip[6], ip[7] = 0x40, 0
	ip[10], ip[11] = 0, 0
	sum := packet.Checksum(ip[:20], 0)
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	return ip
}

// expect waits for the packet that arrives at a pod, the host or a peer, and compares its description with want: "proto
// src > dst [flags]".
func (w *world) expect(where, want string) {
	w.t.Helper()
	got := ""
	if d := w.devices[where]; d != nil {
		select {
		case f := <-d.Frames():
			var p packet.Packet
			if fault := p.ParseFrame(f); fault != packet.Good {
				w.t.Fatalf("%s got a packet with fault %d", where, fault)
			}
			if p.DstMAC() != w.macs[where] || p.SrcMAC() != tap.RouterMAC {
				w.t.Fatalf("%s got a frame from %x for %x", where, p.SrcMAC(), p.DstMAC())
			}
			got = describe(w.t, &p)
		case <-time.After(await.Patience):
			w.t.Fatalf("%s got nothing, want %s; %v", where, want, w.path.Stats())
		}
	} else {
		select {
		case s := <-w.link.Sent():
			got = w.describeSent(s)
		case <-time.After(await.Patience):
			w.t.Fatalf("the link got nothing, want %s; %v", want, w.path.Stats())
		}
	}
	if got != want {
		w.t.Fatalf("%s got\n\t%s, want\n\t%s", where, got, want)
	}
}

func (w *world) describeSent(s netstacktest.Sent) string {
	ip := s.Packets[0]
	prefix := map[uint64]string{node2: "node-2 ", stock: "stock "}[s.Peer]
	if s.Via != nil {
		inner, outer, ok := packet.Decap(ip)
		if !ok {
			w.t.Fatal("the link was told to encapsulate, but the packet is not")
		}
		prefix += fmt.Sprintf("encap %s > %s: ", outer.Src, outer.Dst)
		ip = inner
	}
	var p packet.Packet
	if fault := p.ParseIP(ip); fault != packet.Good {
		w.t.Fatalf("the link got a packet with fault %d", fault)
	}
	return prefix + describe(w.t, &p)
}

func describe(t *testing.T, p *packet.Packet) string {
	t.Helper()
	if p.Frag == packet.NoFrag && p.VNet.Flags&packet.NeedsCsum == 0 && !p.ChecksumOK() {
		t.Fatalf("wrong checksum in %v", p.Tuple)
	}
	src, dst := packet.Endpoint{Addr: p.Tuple.Src, Port: p.Tuple.SrcPort}, packet.Endpoint{Addr: p.Tuple.Dst, Port: p.Tuple.DstPort}
	switch p.Tuple.Proto {
	case packet.TCP:
		return fmt.Sprintf("tcp %s > %s %s", src.AddrPort(), dst.AddrPort(), flagsOf(p))
	case packet.SCTP:
		return fmt.Sprintf("sctp %s > %s %s", src.AddrPort(), dst.AddrPort(), flagsOf(p))
	case packet.UDP:
		return fmt.Sprintf("udp %s > %s", src.AddrPort(), dst.AddrPort())
	}
	var in packet.Packet
	if isICMPError(p) && p.Embedded(&in) {
		return fmt.Sprintf("icmp %d/%d %s > %s about %s", p.ICMPType, p.ICMPCode, p.Tuple.Src, p.Tuple.Dst, describeTuple(&in.Tuple))
	}
	return fmt.Sprintf("icmp %d %s > %s id %d", p.ICMPType, p.Tuple.Src, p.Tuple.Dst, p.Tuple.SrcPort)
}

func flagsOf(p *packet.Packet) (flags string) {
	for i, name := range []string{"F", "S", "R", "P", "A"} {
		if p.TCPFlags&(1<<i) != 0 {
			flags += name
		}
	}
	return flags
}

func describeTuple(t *packet.Tuple) string {
	return fmt.Sprintf("%s > %s", packet.Endpoint{Addr: t.Src, Port: t.SrcPort}.AddrPort(), packet.Endpoint{Addr: t.Dst, Port: t.DstPort}.AddrPort())
}

// dropped waits until a drop for this reason was counted.
func (w *world) dropped(reason DropReason) {
	w.t.Helper()
	w.counted(reason, 1)
}

// counted waits until n packets were dropped or answered for a reason.
func (w *world) counted(reason DropReason, n uint64) {
	w.t.Helper()
	w.until(func() bool { return w.path.Stats().Drops[reason.String()] >= n })
}

// until waits for a condition.
func (w *world) until(so func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("the condition did not become true: %v", w.path.Stats())
		}
	}
}

func segment(src, dst string, flags uint8) netstacktest.Spec {
	return netstacktest.Spec{Src: ap(src), Dst: ap(dst), Proto: packet.TCP, TCPFlags: flags}
}

func datagram(src, dst string) netstacktest.Spec {
	return netstacktest.Spec{Src: ap(src), Dst: ap(dst), Proto: packet.UDP, Payload: []byte("hello")}
}

func echo(src, dst string, kind uint8) netstacktest.Spec {
	return netstacktest.Spec{Src: ap(src), Dst: ap(dst), Proto: packet.ICMPv4, ICMPType: kind}
}
