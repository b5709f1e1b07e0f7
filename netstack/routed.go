package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// A routed client is outside of the cluster, and this node's kernel routes what it sends to the address of a load
// balancer into the host TAP. Its packets are translated like those of pods, and keep the client's address. Answers
// leave by the host TAP, wherever the backend is. Whoever can send packets to the node can send so: anybody. These are
// the rules that keep a routed client from more than the addresses that are meant for it:
//
//   - Its source is no address of the cluster, of this node, or of no host (admitRouted).
//   - Its packets have a space of their own, so they meet only flows that routed clients began, and those of pods that
//     leave by the host TAP (exits.go). Otherwise they could pretend to be the far end of a pod's relayed connection.
//   - It begins flows to exposed addresses alone (mayBeginRouted).
//   - Its flows are charged to the outside, and there to the client (snapshot.owner).

// spaceRouted is the Tuple.Space of what routed clients send.
const spaceRouted uint32 = 1

// admitRouted reports whether a packet that the host TAP brings from an address which is not the host's may be of a
// routed client. If so, it notes it.
func (s *snapshot) admitRouted(j *journey) bool {
	src := &j.packet.Tuple.Src
	if j.from.Kind != HostTAP || s.claims(*src) || noClient(src) {
		return false
	}
	j.routed, j.packet.Tuple.Space = true, spaceRouted
	return true
}

// mayBeginRouted reports whether a routed client may begin the journey's flow; if not, it ends the journey. A client
// that claims an exposed address is none: answers to it would be taken for packets of a client again, and two servers
// that answer everything would answer each other for ever.
func (s *snapshot) mayBeginRouted(j *journey) bool {
	switch {
	case !s.balancer.Exposed(j.orig.Dst):
		return j.drop(NotExposed)
	case s.balancer.Exposed(j.orig.Src):
		return j.drop(Spoofed)
	}
	return true
}

// toRouted ends the journey of an answer to a routed client, or of what a pod sends to the outside, at the host TAP,
// whose kernel knows the way.
func (w *worker) toRouted(j *journey) bool {
	if j.notice != 0 {
		return j.noted()
	}
	host := w.path.attachments.table.Load().host
	if host == nil {
		if j.hit.Dir == flow.Original && j.quoted == nil {
			return j.refuse(prohibited, NoExit)
		}
		return j.drop(NoRoute)
	}
	j.verdict, j.to = ToTAP, host
	return false
}

// hidesRouted reports whether the backend of a routed client, to which r leads, must see the stack's address, since its
// answers would not come back otherwise: a kernel answers clients outside past the tunnel and past this node, and a
// stock peer takes no encapsulated packets.
func (s *snapshot) hidesRouted(r *route, backend packet.Addr) bool {
	switch r.kind {
	case toHost:
		return true
	case toPeer:
		return r.peer.encap == nil || !r.peer.ownsPod(backend)
	}
	return false
}

// relatedSpace returns the space of the flow that an ICMP error is about. The host itself, as a router, tells of
// answers to routed clients, and so do routers beyond it.
func (s *snapshot) relatedSpace(j *journey) uint32 {
	if j.from != nil && j.from.Kind == HostTAP && !j.routed && !s.mayUse(j.from, &j.quoted.Tuple.Dst) {
		j.routed = true
	}
	if j.routed {
		return spaceRouted
	}
	return j.orig.Space
}

// errorSource returns the source that a translated ICMP error gets. Of those about answers to a routed client it is the
// client's address: another node takes an encapsulated packet from no address of the cluster, and a plain one from no
// address outside. A pod of this node hears a router outside as itself.
func (j *journey) errorSource() packet.Addr {
	here := !j.routed || j.hit.Dir == flow.Reply && j.hit.Via == viaRoute
	if src := j.packet.Tuple.Src; src != j.quoted.Tuple.Dst && here {
		return src
	}
	return j.hit.To.Src // the target itself sends the error: its client knows it by the frontend's address
}

// answersOutside reports whether the flow of the journey, whose answers another node sends encapsulated, is of a client
// outside that came in by this node.
func (j *journey) answersOutside() bool {
	return j.hit.Dir == flow.Reply && (j.hit.Via == viaStack || j.hit.Via == viaHost)
}
