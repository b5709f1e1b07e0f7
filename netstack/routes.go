package netstack

import (
	"net/netip"
	"reflect"
	"slices"
	"sort"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// routeKind says who owns an address.
type routeKind uint8

const (
	outside routeKind = iota // not of the cluster: egress through host sockets
	toPod                    // a local pod's attachment
	toHost                   // this node's own addresses
	toSelf                   // the stack's own addresses
	toPeer                   // another node: its pods and its own addresses
	vacant                   // in this node's pod ranges, and no pod has it
	nowhere                  // in the cluster's ranges, or never to be dialled, and nobody's: refused
)

type route struct {
	kind routeKind
	// unnamed is set for addresses of this node that no other node knows as this node's: those that only
	// Config.HostAddrs has.
	unnamed bool
	pod     *Attachment
	peer    *peer
}

// peer is a PeerRoute, compiled.
type peer struct {
	PeerRoute
	space      uint32 // Tuple.Space of clients whose packets it sends encapsulated; never 0
	stackAddrs []packet.Addr
	owner      packet.Addr   // see Path.ownerOf
	encap      *packet.Encap // outer addresses; nil when it accepts no encapsulated packets
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

// owns reports whether a belongs to the peer or to one of its pods.
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
	own        []packet.Addr // the host's addresses, those that pods are likely to ask first
	peers      map[uint64]*peer
	spaces     map[uint32]*peer      // those that accept encapsulated packets, by their spaces
	hosts      map[packet.Addr]route // single addresses: stack, host, peers' node addresses
	lengths    []int                 // distinct lengths of the prefixes below, longest first, in bits of 128
	prefixes   map[netip.Prefix]route
	claimed    []netip.Prefix // pod and service ranges: no outside client may have such an address
	denied     destinations
}

// compile turns a Config into a snapshot.
func compile(c Config, b Balancer, policy Policy, generation uint32) *snapshot {
	s := &snapshot{
		Config: c, balancer: b, policy: policy, generation: generation,
		peers:    make(map[uint64]*peer, len(c.Peers)),
		spaces:   make(map[uint32]*peer, len(c.Peers)),
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
			// An address that this host has is not elsewhere, whatever the other node says.
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
		stack := addressing.Stack(cidr)
		s.stackAddrs = append(s.stackAddrs, packet.AddrFrom(stack))
		s.hosts[packet.AddrFrom(stack)] = route{kind: toSelf}
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
	s.own = s.ownAddrs()
	for _, p := range s.peers {
		if p.Encap {
			p.encap = encapFor(s.stackAddrs, p.stackAddrs)
		}
		if p.encap != nil {
			s.spaces[p.space] = p
		}
	}
	return s
}

// maxOwnAddrs bounds the addresses of the host from which an answer may come for another one of them. Each new flow of
// a pod to a UDP port of the host costs a look for each.
const maxOwnAddrs = 32

// ownAddrs returns the addresses of the host, each once: the first maxOwnAddrs, those that the Node names first.
func (s *snapshot) ownAddrs() (list []packet.Addr) {
	add := func(a netip.Addr) {
		if key := packet.AddrFrom(a); len(list) < maxOwnAddrs && s.isNodeAddr(key) && !slices.Contains(list, key) {
			list = append(list, key)
		}
	}
	for _, a := range s.NodeAddrs {
		add(a)
	}
	for _, cidr := range s.PodCIDRs {
		add(addressing.Host(cidr))
	}
	for _, a := range s.HostAddrs {
		add(a)
	}
	return list
}

// isOf reports whether compile would return an equal snapshot for these arguments.
func (s *snapshot) isOf(c *Config, b Balancer, policy Policy) bool {
	return same(s.balancer, b) && same(s.policy, policy) && reflect.DeepEqual(&s.Config, c)
}

// same reports whether two interface values are equal. Values that cannot be compared are not.
func same(a, b any) bool {
	return a == nil && b == nil || reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// judgedAt reports whether the backend belongs to another node which can tell best whether the backend lives, and which
// resets connections to one that is gone. A pod of another node may have left its Service, as when that turns from blue
// to green, and its connections should go on.
func (s *snapshot) judgedAt(backend *packet.Addr) bool {
	r := s.route(backend)
	return r.kind == toPeer && r.peer.Encap && !r.peer.Unready
}

// encapFor chooses the outer addresses: IPv4 if both nodes have it, since its header is smaller.
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
	if z := uint32(id) ^ uint32(id>>32); z > spaceRouted {
		return z
	}
	return spaceRouted + 1
}

// mapped converts a prefix to the 128-bit form of packet.Addr.
func mapped(p netip.Prefix) netip.Prefix {
	p = p.Masked()
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+packet.Before4)
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

// route finds what owns dst, local pods excepted: Path.attachments has those.
func (s *snapshot) route(dst *packet.Addr) route {
	if r, ok := s.hosts[*dst]; ok {
		return r
	}
	a, is4 := netip.AddrFrom16(*dst), dst.Is4()
	for _, n := range s.lengths {
		if n < packet.Before4 && is4 {
			break // ::/0 is all of IPv6, and nothing of IPv4
		}
		// This cannot fail: n is within 0..128.
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

// unreachable reports whether a must never be dialled for a pod, since it would mean the node itself or nobody.
func unreachable(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// noClient reports whether a can be no client of a host socket: such an address means the other node itself, or nobody.
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

// mayUse reports whether the attachment may send packets from a, and so may get packets for a.
func (s *snapshot) mayUse(att *Attachment, a *packet.Addr) bool {
	return att.owns(a) || att.Kind == HostTAP && s.isNodeAddr(*a)
}

// foreign reports whether a is a client's address, which only an encapsulated packet may carry to another node. The
// peer expects plain packets from this node's own addresses.
func (s *snapshot) foreign(a packet.Addr) bool {
	r, ok := s.hosts[a]
	return !ok || r.kind == toPeer || r.unnamed
}

// stackAddr returns the stack address of the family of like; ok is false when this node has none.
func (s *snapshot) stackAddr(like *packet.Addr) (packet.Addr, bool) {
	for i := range s.stackAddrs {
		if s.stackAddrs[i].Is4() == like.Is4() {
			return s.stackAddrs[i], true
		}
	}
	return packet.Addr{}, false
}
