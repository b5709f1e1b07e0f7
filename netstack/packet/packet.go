package packet

import (
	"net/netip"
)

// Layout of a superframe as a TAP delivers and takes it: virtio-net header, Ethernet header, network packet.
const (
	// VNetHdrLen is the length in bytes of the legacy virtio_net_hdr (TUNSETVNETHDRSZ 10).
	VNetHdrLen = 10
	// EthLen is the length of an Ethernet header without VLAN tag.
	EthLen = 14
	// HeadLen is the offset of the IP header in a superframe.
	HeadLen = VNetHdrLen + EthLen
	// MaxFrame is the size of a buffer that holds any superframe.
	MaxFrame = HeadLen + 65535
)

// EtherTypes.
const (
	EtherIPv4 uint16 = 0x0800
	EtherARP  uint16 = 0x0806
	EtherIPv6 uint16 = 0x86dd
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols the data path tells apart.
const (
	ICMPv4 Proto = 1
	IPIP   Proto = 4 // IPv4 in IP (RFC 2003)
	TCP    Proto = 6
	UDP    Proto = 17
	IPv6IP Proto = 41 // IPv6 in IP (RFC 2473, RFC 4213)
	ICMPv6 Proto = 58
	SCTP   Proto = 132
)

// Connects reports whether the protocol has connections, which begin and end by packets that a Packet's TCPFlags tell.
func (p Proto) Connects() bool { return p == TCP || p == SCTP }

// Addr is an IPv4 or IPv6 address without pointers, so that tables of addresses cost the garbage collector nothing.
// IPv4 is kept as ::ffff:a.b.c.d; an IPv6 packet that carries such an address is malformed.
type Addr [16]byte

// Before4 is the number of bits of an Addr that come before an IPv4 address. A shorter prefix is of IPv6 alone.
const Before4 = 96

// AddrFrom converts an address from netip. The IPv6 zone is dropped.
func AddrFrom(a netip.Addr) Addr { return Addr(a.As16()) }

// Netip converts a to netip; IPv4 comes back as IPv4.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Is4 reports whether a is an IPv4 address.
func (a *Addr) Is4() bool {
	return be.Uint64(a[:8]) == 0 && be.Uint32(a[8:12]) == 0xffff
}

func (a Addr) String() string { return a.Netip().String() }

// MAC is an Ethernet address.
type MAC [6]byte

// Tuple names one direction of a flow. For an ICMP echo both ports hold the identifier. Space keeps equal addresses of
// different owners apart: it is 0 for the cluster's addresses, and for clients whose packets came encapsulated from a
// peer it is that peer's ID, folded.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Space            uint32
	Proto            Proto
	_                [3]byte
}

// Reverse returns the tuple of the packets that answer t.
func (t Tuple) Reverse() Tuple {
	t.Src, t.Dst = t.Dst, t.Src
	t.SrcPort, t.DstPort = t.DstPort, t.SrcPort
	return t
}

// Endpoint is an address with a port, without pointers.
type Endpoint struct {
	Addr Addr
	Port uint16
}

// AddrPort converts to netip.
func (e Endpoint) AddrPort() netip.AddrPort { return netip.AddrPortFrom(e.Addr.Netip(), e.Port) }

// EndpointFrom converts from netip.
func EndpointFrom(ap netip.AddrPort) Endpoint { return Endpoint{AddrFrom(ap.Addr()), ap.Port()} }

// ChoiceKind says what a Balancer found for the destination of a new flow.
type ChoiceKind uint8

// The kinds of a Choice.
const (
	// NotFrontend: the destination is no Service address. The packet is routed as it is.
	NotFrontend ChoiceKind = iota
	// Picked: the packet is translated to Choice.To, which Choice.Backend serves.
	Picked
	// NoEndpoints: the Service has no endpoint that could serve. The packet is refused at once.
	NoEndpoints
	// UnknownPort: the address is a Service's or lies in a service range, and has no such port. The packet is refused
	// at once.
	UnknownPort
	// DropLocal: the traffic policy is Local and this node has no endpoint. The packet is dropped (KEP-2086,
	// Service.spec).
	DropLocal
	// DropSource: the Service does not admit this client (Service.spec.loadBalancerSourceRanges). The packet is
	// dropped.
	DropSource
	// ToStack: this node answers the address itself (cluster DNS). The packet is delivered to the stack, untranslated.
	ToStack
)

// Choice is a Balancer's answer for a new flow.
type Choice struct {
	Kind    ChoiceKind
	Backend uint64 // stable identity of the backend (hash of the pod's UID and more); 0 when not Picked
	To      Endpoint
	// Counted is set when the choice depended on the backends' open connections, so that this one is to be counted.
	Counted bool
}

// BackendState says what may become of a flow that was given a backend earlier.
type BackendState uint8

// The states of a backend, worst first.
const (
	// BackendGone: the backend is no longer in the table. TCP is reset, unless another node knows better; any other
	// flow gets another backend.
	BackendGone BackendState = iota
	// BackendDraining: the backend serves no longer, as far as is known, and gets no new flows. TCP goes on; any other
	// flow gets another backend.
	BackendDraining
	// BackendServing: the backend is about to end, but still serves (KEP-1669). It gets no new flows. Known ones go on,
	// of UDP too.
	BackendServing
	// BackendReady: the backend serves.
	BackendReady
)
