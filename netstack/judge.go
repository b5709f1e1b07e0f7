package netstack

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// judgement says what to do with a packet of a known flow.
type judgement uint8

const (
	goOn  judgement = iota
	again           // the flow was deleted: begin a new one
	ended           // the journey ends
)

// vouches reports whether a flow may go on without being judged: nothing changed since it was last judged, or the
// changes cannot concern it.
func (s *snapshot) vouches(h *flow.Hit) bool {
	return h.State < flow.Closed &&
		(h.Checked == s.generation || s.policy == nil && (h.Dir == flow.Reply || h.Backend == 0 && isBound(h.State)))
}

// isBound reports whether the two ends of the flow have met, or the protocol has nothing to do with Services. Packets
// that were sent before a Service had its address or port went where the address led then; whoever sends them again
// means the Service.
func isBound(s flow.State) bool {
	return s != flow.SynSent && (s < flow.Unreplied || s > flow.Answered)
}

// judge decides whether a known flow may go on when the snapshot does not vouch for it.
func (w *worker) judge(s *snapshot, j *journey) judgement {
	switch j.hit.State {
	case flow.Closed:
		w.forget(j)
		return again
	case flow.Refused, flow.Abandoned:
		if w.asksAnother(s, j) {
			return ended
		}
		if j.hit.State = flow.Reset; s.vouches(&j.hit) {
			return goOn
		}
	case flow.Accepted:
		w.accepts(s, j)
		if j.hit.State = flow.SynReceived; s.vouches(&j.hit) {
			return goOn
		}
	}
	opening := packet.Opens(j.packet.TCPFlags)
	serves := w.serves(s, j, opening)
	if s.policy != nil && (serves || j.hit.Dir == flow.Reply) && !w.permit(s, j) {
		// The flow stays in the table, and each packet of it is judged until it expires. If it were forgotten, a packet
		// of its far end would begin it anew in the other direction, which may be permitted.
		return ended
	}
	if serves {
		w.path.flows.SetChecked(j.hit.Ref, s.generation)
		w.hears(s, j)
		return goOn
	}
	if j.hit.Dir == flow.Reply {
		return goOn // the backend still answers; the client's next packet decides
	}
	w.forget(j)
	if j.packet.Tuple.Proto.Connects() && !opening {
		j.refuse(cut, BackendGone)
		return ended
	}
	return again
}

// serves reports whether the flow's backend may go on serving it. For a flow without a backend, it reports whether the
// Balancer would choose none now either. Connections go on when a Service no longer has the address or port; datagrams
// and attempts to connect do not.
func (w *worker) serves(s *snapshot, j *journey, opening bool) bool {
	knocks := opening && j.hit.State == flow.SynSent || j.hit.State == flow.Unreplied
	moves := (knocks || j.orig.Proto == packet.UDP) && j.hit.Dir == flow.Original
	if j.hit.Backend == 0 {
		if !moves {
			return true
		}
		kind := w.pick(s, j).Kind
		return kind == packet.NotFrontend || kind == packet.ToStack
	}
	at := j.hit.To.Dst
	if j.hit.Dir == flow.Reply {
		at = *j.flowSource()
	}
	return s.keeps(j.hit.Backend, at, j.orig.Proto, knocks) &&
		(!moves || s.balancer.Leads(&j.packet.Tuple, j.hit.Backend, j.hit.To.DstPort))
}

// keeps reports whether the backend with this ID, which is at this address, may keep a flow. knocks is set while nobody
// has answered the flow, or when it begins anew. For UDP an answer means nothing, since some clients never get one.
func (s *snapshot) keeps(id uint64, at packet.Addr, proto packet.Proto, knocks bool) bool {
	switch s.balancer.Backend(id, at) {
	case packet.BackendReady:
		return true
	case packet.BackendServing:
		return proto == packet.UDP || !knocks
	case packet.BackendDraining:
		return proto.Connects() && !knocks
	}
	return proto.Connects() && !knocks && s.judgedAt(&at)
}

// forget deletes the journey's flow from the flow table.
func (w *worker) forget(j *journey) {
	orig := j.orig
	if j.hit.Dir == flow.Reply {
		orig = j.hit.To.Reverse()
	}
	w.path.flows.Delete(j.hit.Ref, &orig)
}

// permit asks the Policy whether the journey's flow is permitted, and ends the journey if not.
func (w *worker) permit(s *snapshot, j *journey) bool {
	w.describe(s, j)
	return j.obeys(s.policy.Judge(&w.told))
}

// permitNew is permit for a flow that begins. A connection whose first packet is none that opens it may have been begun
// by either end, when this node did not know it any more; so it must be permitted both ways. Only clients send to what
// the Balancer leads elsewhere, and from other nodes' host sockets.
func (w *worker) permitNew(s *snapshot, j *journey) bool {
	w.describe(s, j)
	if w.told.Begins = true; !j.obeys(s.policy.Judge(&w.told)) {
		return false
	}
	if !j.orig.Proto.Connects() || packet.Opens(j.packet.TCPFlags) || j.hit.Backend != 0 || j.wrapped {
		return true
	}
	back, rule := &w.told, j.rule
	back.Orig, back.To = back.To.Reverse(), back.Orig.Reverse()
	back.From, back.Toward = back.Toward, back.From
	if !j.obeys(s.policy.Judge(back)) {
		return false
	}
	j.rule = rule
	return true
}

// obeys ends the journey if a ruling does not permit its flow.
func (j *journey) obeys(ruling Ruling) bool {
	j.rule = ruling.Rule
	switch ruling.Action {
	case Permit:
		return true
	case Refuse:
		return j.refuse(denied, Denied)
	}
	return j.drop(Denied)
}

// tell tells the Observer why the journey's packet does not go on, or why its flow does not.
func (w *worker) tell(s *snapshot, j *journey) {
	switch {
	case !j.reason.refusesFlow() || j.quoted != nil || j.packet.Frag == packet.LaterFrag:
		if w.told.Orig = j.orig; j.orig == (packet.Tuple{}) { // admit dropped it
			w.told.Orig = j.packet.Tuple
		}
		w.path.observer.Dropped(&w.told.Orig, j.reason, s.owner(j))
	case j.notice == 0:
		w.describe(s, j)
		w.path.observer.Refused(&w.told, Refusal{Why: j.reason, Told: j.verdict == Answered, Rule: j.rule, Owner: s.owner(j)})
	}
}

// tellBegun tells the Observer, if there is one, that the journey's flow began.
func (w *worker) tellBegun(s *snapshot, j *journey) {
	if w.path.observer != nil {
		w.describe(s, j)
		w.path.observer.Begun(&w.told, j.hit.Ref, j.rule)
	}
}

// describe fills in w.told for the journey's flow. It describes the flow and not the packet, which may be of either
// direction.
func (w *worker) describe(s *snapshot, j *journey) {
	f := &w.told
	f.Backend, f.Begins = j.hit.Backend, false
	if j.hit.Dir == flow.Reply {
		f.Orig, f.To = j.hit.To.Reverse(), j.orig.Reverse()
		f.To.Dst = *j.flowSource()
	} else {
		f.Orig, f.To = j.orig, j.hit.To
	}
	f.To.Space = 0
	f.Toward = w.endAt(s, &f.To.Dst)
	switch j.hit.Via {
	case viaRoute:
		f.From = w.endAt(s, &f.Orig.Src)
	case viaStack:
		f.From = w.endAt(s, &f.Orig.Src)
		if f.From.Kind != Stack && f.From.Kind != Host {
			f.From = End{Kind: Outside} // a client of this node's host sockets
		}
	case viaHost:
		f.From = End{Kind: Outside}
	default:
		f.From = End{Kind: Outside, Peer: j.hit.Via}
	}
}

// endAt returns who has an address.
func (w *worker) endAt(s *snapshot, a *packet.Addr) End { return w.path.route(s, a).end() }

// end returns who is where a route leads.
func (r route) end() End {
	switch r.kind {
	case toPod:
		return End{Kind: Pod, Attachment: r.pod.Name, UID: r.pod.UID}
	case toHost:
		if r.pod != nil {
			return End{Kind: Host, Attachment: r.pod.Name}
		}
		return End{Kind: Host}
	case toSelf:
		return End{Kind: Stack}
	case toPeer:
		return End{Kind: OtherNode, Peer: r.peer.ID}
	case vacant, nowhere:
		return End{Kind: Nobody}
	}
	return End{Kind: Outside}
}

// At returns who has an address. Before the first Set it is nobody.
func (p *Path) At(a netip.Addr) End {
	s, addr := p.snapshot.Load(), packet.AddrFrom(a)
	if s == nil {
		return End{}
	}
	return p.route(s, &addr).end()
}
