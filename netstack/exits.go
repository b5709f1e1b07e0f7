package netstack

import (
	"slices"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// What a pod sends to the outside leaves over host sockets, or as the exit table says, as a packet by the host TAP. The
// flow remembers which: of one that leaves by the host TAP, the space of the answers is that of routed clients, since
// the host's kernel brings them as it brings what those send. The flow goes on where it began for as long as that is
// right. What the host TAP brings never leaves again: it is of the host, of routed clients, or an answer.

// SetExits replaces how packets leave; nil means over host sockets. Flows that began on another way end at their next
// packet.
func (p *Path) SetExits(t *exit.Table) { p.exits.Store(t) }

// leave sets the way of a new flow of a pod to the outside. It returns false when the flow may not be, and ends the
// journey.
func (w *worker) leave(s *snapshot, j *journey) bool {
	exits := w.path.exits.Load()
	if exits == nil || j.from == nil || j.from.Kind != PodTAP {
		return true
	}
	to := &j.hit.To
	if w.wayOf(s, exits, to) == exit.Sockets {
		return true
	}
	if s.denied.has(to) {
		return j.refuse(denied, EgressDenied)
	}
	if !w.path.attachments.table.Load().host.routes(to) {
		return j.refuse(prohibited, NoExit)
	}
	to.Space, j.via = spaceRouted, viaHost
	return true
}

// routes reports whether the host TAP att, which may be nil, takes packets of t to the outside: the host's kernel
// routes the families of which it has an address there.
func (att *Attachment) routes(t *packet.Tuple) bool {
	return att != nil && slices.ContainsFunc(att.addrs, func(a packet.Addr) bool { return a.Is4() == t.Dst.Is4() })
}

// wayOf returns the way by which packets with the tuple leave: host sockets, also when they stay in the cluster.
func (w *worker) wayOf(s *snapshot, exits *exit.Table, to *packet.Tuple) exit.Way {
	way := exits.Of(to.Dst)
	if way != exit.Sockets && w.route(s, &to.Dst).kind != outside {
		return exit.Sockets
	}
	return way
}

// stands reports whether a known flow whose packet gets a space goes on. Answers to somebody who has a space do. A flow
// that leaves as a packet does while that is its way; otherwise it is deleted, so that the packet begins another.
func (w *worker) stands(s *snapshot, j *journey) bool {
	if j.hit.Dir == flow.Reply {
		return true
	}
	if w.wayOf(s, w.path.exits.Load(), &j.hit.To) == exit.HostTAP && !s.denied.has(&j.hit.To) {
		j.via = viaHost
		return true
	}
	w.forget(j)
	return false
}

// strays reports whether the journey's packet is of a flow that began over host sockets, and now has to leave in
// another way; if so, it ends the flow and the journey. The server outside would not know the pod's address.
func (w *worker) strays(s *snapshot, j *journey) bool {
	if w.wayOf(s, w.path.exits.Load(), &j.packet.Tuple) == exit.Sockets {
		return false
	}
	if !j.begun && j.quoted == nil && j.packet.Frag != packet.LaterFrag {
		w.forget(j)
	}
	if j.packet.Tuple.Proto.Connects() && j.packet.Frag == packet.NoFrag && j.packet.TCPFlags&(packet.SYN|packet.RST) == 0 {
		j.refuse(cut, NoExit)
	} else {
		j.drop(NoExit)
	}
	return true
}
