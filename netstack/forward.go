package netstack

import (
	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// forward is the step that finds out who gets the translated packet, and whether it may go there.
func (w *worker) forward(s *snapshot, j *journey) bool {
	switch j.via {
	case viaRoute:
	case viaStack:
		return j.toStack()
	case viaHost:
		return w.toRouted(j)
	default:
		peer := s.peers[j.via]
		if peer == nil || peer.encap == nil {
			return j.drop(NoRoute)
		}
		if j.notice == 0 && j.packet.IsNotice() {
			return j.drop(NoRoute) // a notice is a node's word, and no pod's
		}
		return w.toPeer(j, peer, true)
	}
	p := j.packet
	r := w.path.route(s, &p.Tuple.Dst)
	switch r.kind {
	case toPod, toHost:
		if r.pod == nil {
			if r.unnamed {
				return j.refuse(noHost, NoRoute)
			}
			break
		}
		if j.wrapped && r.kind != toPod {
			return j.drop(BadEncap)
		}
		j.verdict, j.to = ToTAP, r.pod
		return false
	case toSelf:
		return j.toStack()
	case toPeer:
		if j.sender != nil && j.hit.Backend == 0 {
			return j.drop(NoRoute) // never from one peer to another, except for what this node has steered
		}
		if j.from != nil && j.from.Kind == HostTAP && s.hosts[p.Tuple.Src].unnamed {
			return j.drop(NoRoute) // the other node does not know that this node has the address
		}
		if (j.fromStack() || j.routed) && s.foreign(p.Tuple.Src) {
			if r.peer.encap == nil {
				return j.drop(NoRoute)
			}
			return w.toPeer(j, r.peer, true)
		}
		if isSYN(p) && j.byService() && r.peer.Encap {
			p.MarkService()
		}
		return w.toPeer(j, r.peer, false)
	case vacant:
		if p.Tuple.Proto.Connects() && p.Frag == packet.NoFrag && p.TCPFlags&(packet.SYN|packet.RST) == 0 {
			return j.refuse(cut, NoRoute) // the sender's kernel would not give up for an ICMP error
		}
		if isSYN(p) && j.hit.Backend != 0 && j.from != nil && j.hit.Dir == flow.Original && w.asksInstead(j) {
			return false
		}
		return j.refuse(noHost, NoRoute)
	case nowhere:
		return j.refuse(noHost, NoRoute)
	}
	// Attachments of this node reach the outside. Node addresses without a host TAP are reached the same way, also by
	// peers.
	if j.from == nil && (j.sender == nil || j.wrapped || r.kind != toHost) {
		return j.drop(NoRoute)
	}
	if j.from != nil && j.from.Kind == HostTAP && p.Tuple.Dst == j.orig.Dst {
		// The host routes the address in here, and would send back what a host socket sent there: the packet would go
		// round for ever. A Service may lead a process of the host outside, though.
		return j.refuse(noHost, NoRoute)
	}
	if j.routed {
		return j.refuse(noHost, NoRoute) // what is dialled outside for clients outside may lead back to a node
	}
	if r.kind == outside && s.denied.has(&p.Tuple) {
		return j.refuse(denied, EgressDenied)
	}
	if w.path.exits.Load() != nil && j.from != nil && j.from.Kind == PodTAP && w.strays(s, j) {
		return false
	}
	return j.toOutside()
}

// byService reports whether a Service of this node led the packet where it goes: by translation, or by a connection of
// the stack, which connects for Services alone (NodePort, Ingress). The other node may steer such a SYN. What this node
// has steered itself is not marked, so that nobody steers it once more.
func (j *journey) byService() bool {
	return j.sender == nil && (j.hit.Backend != 0 || j.fromStack())
}

// route finds what owns dst. It adds the local pods and the host TAP to what the snapshot knows.
func (p *Path) route(s *snapshot, dst *packet.Addr) route {
	t := p.attachments.table.Load()
	if att := t.byAddr[*dst]; att != nil {
		return route{kind: toPod, pod: att}
	}
	r := s.route(dst)
	if r.kind == toHost {
		r.pod = t.host
	}
	return r
}

// toPeer ends the journey at another node, if the packet fits the way there (RFC 1191, RFC 8201).
func (w *worker) toPeer(j *journey, to *peer, wrap bool) bool {
	if w.path.link == nil {
		return j.drop(NoRoute)
	}
	p, mtu := j.packet, w.path.link.MTU(to.ID)
	if wrap {
		mtu -= addressing.Encap(!to.encap.Dst.Is4())
	}
	if mtu < addressing.MinMTU && p.EtherType == packet.EtherIPv6 {
		mtu = addressing.MinMTU // the Link carries that much in pieces; nobody may be told of less (RFC 8201 4)
	}
	j.mtu = int32(mtu)
	if segmentLen(p) > mtu && (p.DontFragment || p.VNet.GSOType != packet.GSONone) {
		return j.refuse(tooBig, TooBig)
	}
	j.verdict, j.peer, j.wrap = ToLink, to, wrap
	return false
}

// segmentLen returns the length in bytes of the largest IP packet that p becomes on a wire.
func segmentLen(p *packet.Packet) int {
	if p.VNet.GSOType == packet.GSONone {
		return p.Len()
	}
	return min(p.Payload+int(p.VNet.GSOSize), p.Len())
}
