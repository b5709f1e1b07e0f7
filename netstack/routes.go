package netstack

import (
	"net/netip"
	"reflect"
	"slices"
	"sort"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// routeKind says what owns an address.
type routeKind uint8

const (
	outside routeKind = iota // nobody of ours: egress through host sockets
	toPod                    // a local pod's attachment
	toHost                   // this node's own addresses
	toSelf                   // the stack's own addresses
	toPeer                   // another node, its pods and its addresses
	vacant                   // for a pod of this node, and no pod has it
	nowhere                  // inside the cluster's ranges, or not to be reached, but owned by nobody
)

type route struct {
	kind routeKind
	// unnamed is set for the node's own addresses that no other node knows as its: those of Config.HostAddrs alone.
	unnamed bool
	pod     *Attachment
	peer    *peer
}

// peer is a PeerRoute, compiled.
type peer struct {
	PeerRoute
	space      uint32 // Tuple.Space of what arrives encapsulated from it; never 0
	stackAddrs []packet.Addr
	owner      packet.Addr   // see Path.ownerOf
	encap      *packet.Encap // how to wrap for it; nil when it does not take encapsulated packets
}

func (p *peer) isStack(a packet.Addr) bool {
	for _, g := range p.stackAddrs {
		if g == a {
			return true
		}
	}
	return false
}

func (p *peer) ownsPod(a packet.Addr) bool { return addressing.Contains(p.PodCIDRs, a.Netip()) }

// owns reports whether a is the peer's: of its pods, or its own.
func (p *peer) owns(a packet.Addr) bool {
	return p.ownsPod(a) || slices.Contains(p.NodeAddrs, a.Netip())
}

// snapshot is a compiled Config. It is immutable; a new one replaces it whole.
type snapshot struct {
	Config
	balancer   Balancer
	policy     Policy // nil permits everything
	generation uint32
	stackAddrs []packet.Addr // own stack addresses
	peers      map[uint64]*peer
	hosts      map[packet.Addr]route // single addresses: stack, host, peers' node addresses
	lengths    []int                 // distinct lengths of the prefixes below, longest first, of 128
	prefixes   map[netip.Prefix]route
	claimed    []netip.Prefix // pod and service ranges: no outside client may come from there
	denied     destinations
}

// compile turns a Config into a snapshot.
func compile(c Config, b Balancer, policy Policy, generation uint32) *snapshot {
	s := &snapshot{
		Config: c, balancer: b, policy: policy, generation: generation,
		peers:    make(map[uint64]*peer, len(c.Peers)),
		hosts:    make(map[packet.Addr]route),
		prefixes: make(map[netip.Prefix]route),
		denied:   destinationsOf(c.DenyEgress),
	}
	s.claimed = append(append(s.claimed, c.ClusterCIDRs...), c.ServiceCIDRs...)
	for _, a := range c.HostAddrs {
		if !unreachable(a) && !s.claims(packet.AddrFrom(a)) {
			s.hosts[packet.AddrFrom(a)] = route{kind: toHost, unnamed: true}
		}
	}
	for _, pr := range c.Peers {
		p := &peer{PeerRoute: pr, space: spaceOf(pr.ID)}
		for _, cidr := range pr.PodCIDRs {
			p.stackAddrs = append(p.stackAddrs, packet.AddrFrom(addressing.Stack(cidr)))
			s.addPrefix(cidr, route{kind: toPeer, peer: p})
		}
		for _, a := range pr.NodeAddrs {
			// What this host has is not elsewhere, whatever the other node says.
			if key := packet.AddrFrom(a); s.hosts[key].kind != toHost {
				s.hosts[key] = route{kind: toPeer, peer: p}
			}
			p.owner = packet.AddrFrom(pr.NodeAddrs[0])
		}
		if len(p.stackAddrs) > 0 {
			p.owner = p.stackAddrs[0]
		}
		s.peers[pr.ID] = p
	}
	for _, cidr := range c.ServiceCIDRs {
		s.addPrefix(cidr, route{kind: nowhere})
	}
	for _, cidr := range c.PodCIDRs {
		s.addPrefix(cidr, route{kind: vacant})
		gate := addressing.Stack(cidr)
		s.stackAddrs = append(s.stackAddrs, packet.AddrFrom(gate))
		s.hosts[packet.AddrFrom(gate)] = route{kind: toSelf}
		s.hosts[packet.AddrFrom(addressing.Host(cidr))] = route{kind: toHost}
	}
	for _, cidr := range c.ClusterCIDRs {
		if _, taken := s.prefixes[mapped(cidr)]; !taken {
			s.addPrefix(cidr, route{kind: nowhere})
		}
	}
	for _, a := range c.LocalAddrs {
		s.hosts[packet.AddrFrom(a)] = route{kind: toSelf}
	}
	for _, a := range c.NodeAddrs {
		s.hosts[packet.AddrFrom(a)] = route{kind: toHost}
	}
	for _, p := range s.peers {
		if p.Encap {
			p.encap = encapFor(s.stackAddrs, p.stackAddrs)
		}
	}
	return s
}

// isOf reports whether compile would give the same again.
func (s *snapshot) isOf(c *Config, b Balancer, policy Policy) bool {
	return same(s.balancer, b) && same(s.policy, policy) && reflect.DeepEqual(&s.Config, c)
}

// same reports whether two values of an interface are one. Those that cannot be compared are not.
func same(a, b any) bool {
	return a == nil && b == nil || reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// judgedAt reports whether the node that has the address knows best whether somebody is there, and says so with a
// reset: a pod of another node may have left its Service, as when that turns from blue to green, and its connections
// are to go on.
func (s *snapshot) judgedAt(backend *packet.Addr) bool {
	r := s.route(backend)
	return r.kind == toPeer && r.peer.Encap && !r.peer.Unready
}

// encapFor chooses the outer addresses: IPv4 where both have it, since its header is smaller.
func encapFor(own, theirs []packet.Addr) *packet.Encap {
	for _, want4 := range []bool{true, false} {
		for _, a := range own {
			for _, b := range theirs {
				if a.Is4() == want4 && b.Is4() == want4 {
					return &packet.Encap{Src: a, Dst: b}
				}
			}
		}
	}
	return nil
}

func spaceOf(id uint64) uint32 {
	if z := uint32(id) ^ uint32(id>>32); z != 0 {
		return z
	}
	return 1
}

// mapped brings a prefix to the 128-bit form of packet.Addr.
func mapped(p netip.Prefix) netip.Prefix {
	p = p.Masked()
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+96)
	}
	return p
}

func (s *snapshot) addPrefix(cidr netip.Prefix, r route) {
	m := mapped(cidr)
	if i := sort.Search(len(s.lengths), func(i int) bool { return s.lengths[i] <= m.Bits() }); i == len(s.lengths) || s.lengths[i] != m.Bits() {
		s.lengths = append(s.lengths[:i], append([]int{m.Bits()}, s.lengths[i:]...)...)
	}
	s.prefixes[m] = r
}

// route finds what owns dst, the local pods apart, which live in Path.attachments.
func (s *snapshot) route(dst *packet.Addr) route {
	if r, ok := s.hosts[*dst]; ok {
		return r
	}
	a := netip.AddrFrom16(*dst)
	for _, n := range s.lengths {
		// Prefix cannot fail: n is within 0..128.
		p, _ := a.Prefix(n)
		if r, ok := s.prefixes[p]; ok {
			return r
		}
	}
	if unreachable(a.Unmap()) {
		return route{kind: nowhere}
	}
	return route{kind: outside}
}

// unreachable tells addresses that must never be dialled for a pod: they would mean the node itself or nobody.
func unreachable(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// noClient tells addresses that no client of another node's host sockets has: he would be that node itself, whom pods
// see by its own address, its neighbour on a link, or nobody.
func noClient(a *packet.Addr) bool { return isMulticast(a) || unreachable(a.Netip()) }

// claims reports whether a lies in a pod or service range.
func (s *snapshot) claims(a packet.Addr) bool { return addressing.Contains(s.claimed, a.Netip()) }

func (s *snapshot) isOwnStack(a packet.Addr) bool {
	for _, g := range s.stackAddrs {
		if g == a {
			return true
		}
	}
	return false
}

func (s *snapshot) isNodeAddr(a packet.Addr) bool {
	r, ok := s.hosts[a]
	return ok && r.kind == toHost
}

// mayUse reports whether packets of an attachment may come from a, and packets for it go to a.
func (s *snapshot) mayUse(att *Attachment, a *packet.Addr) bool {
	return att.owns(a) || att.Kind == HostTAP && s.isNodeAddr(*a)
}

// foreign tells source addresses that only an encapsulated packet may carry to another node: a client's. This node's
// own are inside of what the peer expects from us.
func (s *snapshot) foreign(a packet.Addr) bool {
	r, ok := s.hosts[a]
	return !ok || r.kind == toPeer || r.unnamed
}

// stackAddr gives the stack address of the family of like; ok is false when this node has none.
func (s *snapshot) stackAddr(like *packet.Addr) (packet.Addr, bool) {
	for i := range s.stackAddrs {
		if s.stackAddrs[i].Is4() == like.Is4() {
			return s.stackAddrs[i], true
		}
	}
	return packet.Addr{}, false
}
