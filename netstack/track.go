package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/fragment"
	"tapestry.dev/tapestry/netstack/packet"
)

// bind is the step that finds the packet's flow or begins one, and so determines what the packet becomes and where it
// goes. An ICMP error belongs to the flow of the packet that it quotes, a later fragment to that of its first fragment.
// Insert is atomic: when two packets of a new flow race, the loser finds the winner's entry in the next round.
func (w *worker) bind(s *snapshot, j *journey) bool {
	p := j.packet
	j.orig = p.Tuple
	switch {
	case isICMPError(p):
		return w.related(s, j)
	case p.Frag == packet.LaterFrag:
		return w.follow(s, j)
	}
	for range 4 {
		j.via = viaRoute // what an earlier round found is not so any more
		known := w.path.flows.Lookup(&p.Tuple, p.Segment(), &j.hit) || w.answersAs(s, j)
		if known && j.hit.Kind&TakenOver != 0 {
			switch w.takenOver(s, j) {
			case goOn:
			case again:
				known = false
			case ended:
				return false
			}
		}
		if known && !s.vouches(&j.hit) {
			switch w.judge(s, j) {
			case goOn:
			case again:
				known = false
			case ended:
				return false
			}
		}
		if known && (j.hit.To.Space == 0 || w.stands(s, j)) {
			seg := p.Segment()
			if j.hit.Dir == flow.Reply {
				j.via = j.hit.Via
			} else {
				seg.Ack -= j.shift.Seq // the table knows the backend's numbers
			}
			w.path.flows.Count(&j.hit, p.Len(), seg)
			return true
		}
		if done, ok := w.begin(s, j); done {
			return ok
		}
	}
	return j.drop(FlowsFull)
}

// begin begins the packet's flow, if it is permitted. done is false when another goroutine began it first; ok says
// whether further steps follow.
func (w *worker) begin(s *snapshot, j *journey) (done, ok bool) {
	if (j.sender != nil || j.routed) && !s.mayBegin(j) || !j.moved && !j.mayBeginOne() {
		return true, false
	}
	if j.moved {
		return w.enter(s, j, w.kept)
	}
	if done, ok = w.enter(s, j, w.pick(s, j)); j.begun && j.hit.Backend != 0 && j.from != nil && isSYN(j.packet) {
		w.path.knocks(j.from, j.routed).Keep(&j.orig, j.packet)
	}
	return done, ok
}

// enter enters the packet's flow, which goes as chosen, into the flow table. It returns the same as begin.
func (w *worker) enter(s *snapshot, j *journey, chosen packet.Choice) (done, ok bool) {
	by := j.shift
	if !w.choose(s, j, chosen) {
		return true, false
	}
	p, h, seg := j.packet, &j.hit, j.packet.Segment()
	via := h.Via
	switch {
	case j.takes:
		h.Kind |= TakenOver
	case j.moved && by != packet.Shift{}:
		h.Kind |= TakenOver
		j.shift, via = by, viaOf(by)
		seg.Ack -= by.Seq // the table knows the backend's numbers
	}
	if p.TCPFlags&packet.RST != 0 && h.Backend == 0 && h.Via == viaRoute {
		return true, true // a stray reset begins nothing, and is not translated
	}
	e := flow.Entry{
		Orig: j.orig, Reply: h.To.Reverse(), Backend: h.Backend, Via: via, Kind: h.Kind, Owner: s.owner(j),
		Counts:  [2]flow.Count{flow.Original: {Bytes: uint64(p.Len()), Packets: 1}},
		Segment: seg, Begins: j.notice, Checked: s.generation,
	}
	switch ref, result := w.path.flows.Insert(&e); result {
	case flow.Inserted:
		h.Ref, j.begun = ref, true
		h.To.SrcPort, h.To.DstPort = e.Reply.DstPort, e.Reply.SrcPort // Insert may have chosen other ports
		h.Translate = flow.Translates(&e.Orig, &e.Reply) || j.shift != packet.Shift{}
		w.hears(s, j)
		w.watch(j)
		w.tellBegun(s, j)
		return true, true
	case flow.Full:
		return true, j.drop(FlowsFull)
	case flow.NoPort:
		if h.To.Space != 0 { // by an exit: many share the address, whose ports are not back by the next try
			return true, j.refuse(denied, NoSourcePort)
		}
		return true, j.refuse(noHost, NoSourcePort)
	}
	j.shift = packet.Shift{} // that of the other goroutine's flow counts
	return false, false
}

// mayBegin reports whether a peer or a routed client may begin the journey's flow; if not, it ends the journey. The
// Link has compared the source with the addresses that the peer is said to have; an address that this node has itself
// is not the peer's. A client of the peer's host sockets may only reach an endpoint. Otherwise it could take the
// address of a resolver and begin flows to the pods that use that resolver; the pods' queries would then match those
// flows and go to the peer.
func (s *snapshot) mayBegin(j *journey) bool {
	if j.routed {
		return s.mayBeginRouted(j)
	}
	switch {
	case j.leaving:
		return true
	case j.answers: // late, by a node that is the gateway no more: a reset would end what goes on by another
		return j.drop(BadEncap)
	}
	if j.wrapped {
		to := packet.Endpoint{Addr: j.orig.Dst, Port: j.orig.DstPort}
		switch {
		case s.balancer.IsEndpoint(to, j.orig.Proto):
			return true
		case j.orig.Proto.Connects() && j.packet.TCPFlags&packet.SYN == 0:
			return j.refuse(cut, NoRoute) // a connection whose endpoint is gone
		}
		return j.drop(BadEncap)
	}
	r := s.route(&j.orig.Src)
	return r.kind == toPeer && r.peer == j.sender || j.drop(SpoofedPeer)
}

func withoutSpace(t packet.Tuple) packet.Tuple {
	t.Space = 0
	return t
}

// choose fills in j.hit for the packet's new flow: what the Balancer made of the packet, and whether the Policy permits
// the flow.
func (w *worker) choose(s *snapshot, j *journey, choice packet.Choice) bool {
	j.hit, j.shift = flow.Hit{To: withoutSpace(j.orig), Checked: s.generation}, packet.Shift{}
	switch {
	case j.fromStack():
		j.hit.Via = viaStack
	case j.wrapped:
		j.hit.Via = j.sender.ID
	case j.routed:
		j.hit.Via = viaHost
	}
	to := &j.hit.To
	switch choice.Kind {
	case packet.Picked:
		to.Dst, to.DstPort = choice.To.Addr, choice.To.Port
		j.hit.Backend = choice.Backend
		if choice.Counted {
			j.hit.Kind = Counted
		}
	case packet.NoEndpoints:
		return j.refuse(refused, NoEndpoints)
	case packet.UnknownPort:
		return j.refuse(refused, UnknownPort)
	case packet.DropLocal:
		return j.drop(LocalPolicy)
	case packet.DropSource:
		return j.drop(SourceRange)
	}
	if !w.leave(s, j) {
		return false
	}
	if w.mustMasquerade(s, j) {
		stackAddr, ok := s.stackAddr(&to.Src)
		if !ok {
			return j.drop(NoRoute)
		}
		to.Src = stackAddr
	}
	if s.policy == nil || w.permitNew(s, j) {
		return true
	}
	if choice.Kind != packet.Picked || !j.service || s.isNodeAddr(j.orig.Dst) {
		return false
	}
	// It may not go where it is steered. It goes where its node has led it, since it may go there.
	j.verdict, j.reason, j.answer = Dropped, NotDropped, noAnswer
	return w.choose(s, j, packet.Choice{})
}

// pick asks the Balancer. Packets are translated once, on the node where the flow enters. There are two exceptions.
// hostPorts: only the node whose address it is knows them, and they lead to its own pods only. Endpoints that leave
// their Service: their node knows it first, and steers connections that others still send there.
func (w *worker) pick(s *snapshot, j *journey) packet.Choice {
	t := &j.packet.Tuple
	if j.sender == nil {
		return s.balancer.Pick(t)
	}
	if j.service {
		if choice := w.path.steer(t, j.wrapped); choice.Kind == packet.Picked {
			return choice
		}
	}
	if j.wrapped || !s.isNodeAddr(t.Dst) {
		return packet.Choice{}
	}
	choice := s.balancer.Pick(t)
	if choice.Kind == packet.Picked && w.path.attachments.table.Load().byAddr[choice.To.Addr] == nil {
		return packet.Choice{}
	}
	return choice
}

// mustMasquerade reports whether the backend must see the stack's address instead of the sender's. That is so for flows
// that go back into the attachment they came from, since a kernel drops packets from its own address as martians, and
// for clients of this node's host sockets whose answers could not come back, since the other node accepts no
// encapsulated packets. A flow of a peer that was steered to a third node is masked as well: that node accepts only
// this node's own addresses from here, and answers have to come back by this way.
func (w *worker) mustMasquerade(s *snapshot, j *journey) bool {
	r := w.path.route(s, &j.hit.To.Dst)
	if j.routed {
		return s.hidesRouted(&r, j.hit.To.Dst)
	}
	if j.from != nil {
		return r.pod == j.from
	}
	if j.sender != nil {
		return j.hit.Backend != 0 && r.kind == toPeer
	}
	return j.fromStack() && r.kind == toPeer && r.peer.encap == nil && s.foreign(j.hit.To.Src)
}

// quote parses the packet that an ICMP error quotes.
func (w *worker) quote(j *journey) bool {
	if !j.packet.Embedded(&w.inner) {
		return j.drop(Malformed)
	}
	j.quoted = &w.inner
	return true
}

// related finds the flow of the packet that an ICMP error quotes (RFC 5508). An error that is believed can end
// connections and reduce the path MTU. So it counts only if it comes from the end of the flow that got the quoted
// packet, and goes to the end that sent it. A quoted packet without a flow counts as never sent.
func (w *worker) related(s *snapshot, j *journey) bool {
	if j.quoted == nil && !w.quote(j) {
		return false
	}
	t := j.quoted.Tuple.Reverse()
	t.Space = s.relatedSpace(j)
	if j.orig.Dst != t.Dst || !s.mayQuote(j) || !w.path.flows.Peek(&t, &j.hit) {
		return j.drop(StrayError)
	}
	if s.policy != nil && j.hit.Checked != s.generation && !w.permitQuoted(s, j, &t) {
		return false
	}
	switch {
	case j.hit.Kind&TakenOver != 0: // by route
	case j.hit.Dir == flow.Reply:
		j.via = j.hit.Via
	case j.hit.To.Space != 0:
		return w.leads(s, j) || j.drop(StrayError)
	}
	return true
}

// permitQuoted asks the Policy whether the flow that an ICMP error is about is still permitted, and ends the journey if
// not. t is the tuple by which the flow was found. The flow's next packet is judged all the same.
func (w *worker) permitQuoted(s *snapshot, j *journey, t *packet.Tuple) bool {
	orig := j.orig
	j.orig = *t
	w.describe(s, j)
	j.orig = orig
	ruling := s.policy.Judge(&w.told)
	j.rule = ruling.Rule
	return ruling.Action == Permit || j.drop(Denied) // nobody is told of an error about an error
}

// mayQuote reports whether the packet that an ICMP error quotes may have been sent to the sender of the error.
func (s *snapshot) mayQuote(j *journey) bool {
	to := &j.quoted.Tuple.Dst
	switch {
	case j.routed:
		return true // from beyond the host TAP; the space limits it to flows that cross that
	case j.from != nil:
		return s.mayUse(j.from, to)
	case j.wrapped && j.orig.Space != 0:
		return true // from a client of the peer; the space limits it to flows of such clients
	case j.sender != nil:
		return j.sender.owns(*to)
	}
	return true // from this node's stack
}

// translate is the step that rewrites the packet in place as its flow says.
func (w *worker) translate(s *snapshot, j *journey) bool {
	return !j.hit.Translate && j.packet.Frag != packet.FirstFrag || w.rewrite(s, j)
}

func (w *worker) rewrite(s *snapshot, j *journey) bool {
	p := j.packet
	switch {
	case !j.hit.Translate:
	case j.quoted == nil:
		p.Rewrite(&j.hit.To)
		j.shifts()
	default:
		quoted := j.hit.To.Reverse()
		p.RewriteEmbedded(j.errorSource(), j.hit.To.Dst, &quoted)
	}
	if p.Frag == packet.FirstFrag {
		j.awaited = w.path.fragments.Remember(&j.orig, p.FragID, s.owner(j), fragment.Way{To: p.Tuple, Via: j.via})
	}
	return true
}
