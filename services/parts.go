package services

import (
	"cmp"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// part is a Part, compiled for the ports of its Service. It never changes.
type part struct {
	piece
	of     *Part
	serves []bool       // by port: whether an endpoint serves it
	lists  []candidates // two per port: those of IPv4 and of IPv6
}

// candidates are the backends of a part that may be chosen, sorted by id.
type candidates struct {
	list []candidate
	has  tallies
}

// candidate is a backend, and the groups in which it is, a bit for each.
type candidate struct {
	backend
	in uint16
}

// group is a group of the endpoints that serve a port in one family.
type group uint8

// The groups. All but those that terminate are ready, as choose has it.
const (
	isReady      group = iota
	forThisNode        // its hints name this node
	forThisZone        // its hints name this node's zone
	noNodeHint         // it has no hint of nodes
	noZoneHint         // it has no hint of zones
	isEnding           // it terminates, and serves
	isReadyHere        // it is on this node
	isEndingHere       // the same of one that terminates
	groups
)

// tallies counts candidates by group.
type tallies [groups]int

// united is a set of backends of many parts: those of one group.
type united struct {
	group
	*tree
}

// unite compiles a Service whose endpoints are in parts. Parts that was has, too, are not compiled again; was has the
// same ports, and may be nil.
func (b *unitBuilder) unite(was *unit) {
	if was == nil {
		was = new(unit)
	}
	var ports []int
	for j := range b.s.Ports {
		if b.usable(j) {
			ports = append(ports, j)
		}
	}
	known := make(map[*Part]*part, len(was.parts))
	for _, p := range was.parts {
		known[p.of] = p
	}
	b.parts, b.whole = make([]*part, len(b.s.Parts)), make([]united, 2*len(b.s.Ports))
	for i, of := range b.s.Parts {
		if b.parts[i] = known[of]; b.parts[i] == nil {
			b.parts[i] = b.part(of, ports)
		}
	}
	gone, come := apart(was.parts, b.parts)
	for _, j := range ports {
		b.served(j, slices.ContainsFunc(b.parts, func(p *part) bool { return p.serves[j] }))
		for f, is4 := range [...]bool{true, false} {
			if !b.fronted(&b.s.Ports[j], is4) {
				continue
			}
			var before united
			if was.whole != nil {
				before = was.whole[2*j+f]
			}
			b.uniteSets(j, is4, before, gone, come)
			b.portFronts(j, is4)
		}
	}
}

// part compiles a part for some ports of the Service.
func (b *unitBuilder) part(of *Part, ports []int) *part {
	p := &part{piece: piece{affinity: b.affinity}, of: of, serves: make([]bool, len(b.s.Ports)), lists: make([]candidates, 2*len(b.s.Ports))}
	b.places(of.Endpoints, &p.piece)
	endpoints := newServing(of.Endpoints).sorted()
	for _, j := range ports {
		serving := endpoints.port(&b.s.Ports[j])
		p.serves[j] = len(serving) > 0
		b.stand(&b.s.Ports[j], serving, &p.piece)
		for f, is4 := range [...]bool{true, false} {
			if b.fronted(&b.s.Ports[j], is4) {
				p.lists[2*j+f] = b.candidates(j, familyOf(is4), serving, &p.piece)
			}
		}
	}
	return p
}

// candidates returns those among the endpoints that serve port j, which are sorted by pod, and records the states of
// all.
func (b *unitBuilder) candidates(j int, family Family, serving []Target, to *piece) (c candidates) {
	id := portID(b.s, &b.s.Ports[j])
	for _, t := range serving {
		e := t.Endpoint
		if !family.has(e.Addr) {
			continue
		}
		x := candidate{backend: backend{backendID(t.pod, id, t.Port), packet.Endpoint{Addr: packet.AddrFrom(e.Addr), Port: t.Port}}}
		to.add(x.id, stateOf(b.s, e))
		in := func(g group, is bool) {
			if is {
				x.in |= 1 << g
				c.has[g]++
			}
		}
		here, ready := b.place.node != "" && e.Node == b.place.node, e.Ready || b.s.PublishNotReady
		ending := !ready && e.Serving && e.Terminating
		in(isReady, ready)
		in(forThisNode, ready && e.ForNode == Here)
		in(forThisZone, ready && e.ForZone == Here)
		in(noNodeHint, ready && e.ForNode == NoHint)
		in(noZoneHint, ready && e.ForZone == NoHint)
		in(isEnding, ending)
		in(isReadyHere, ready && here)
		in(isEndingHere, ending && here)
		if x.in != 0 {
			c.list = append(c.list, x)
		}
	}
	slices.SortFunc(c.list, func(x, y candidate) int { return cmp.Compare(x.id, y.id) })
	return c
}

// uniteSets fills in the port's sets of backends of the whole cluster and of this node. before is the former set, to
// which the parts gone belonged in place of the parts come.
func (b *unitBuilder) uniteSets(j int, is4 bool, before united, gone, come []*part) {
	at := 2 * j
	if !is4 {
		at++
	}
	var has tallies
	for _, p := range b.parts {
		for g, n := range p.lists[at].has {
			has[g] += n
		}
	}
	whole, local := &b.sets[setIndex(j, false, is4)], &b.sets[setIndex(j, true, is4)]
	now := united{group: has.everywhere()}
	if before.group == now.group && before.tree != nil {
		now.tree = before.tree.with(backendsIn(gone, at, now.group), backendsIn(come, at, now.group))
	} else {
		now.tree = newTree(backendsIn(b.parts, at, now.group))
	}
	b.whole[at] = now
	*whole = b.unitedSet(now, packet.NoEndpoints)
	switch {
	case whole.size() == 0:
		local.empty = packet.NoEndpoints
	case b.s.InternalLocal || b.s.ExternalLocal:
		g := has.here()
		*local = b.unitedSet(united{g, newTree(backendsIn(b.parts, at, g))}, packet.DropLocal)
	}
}

// unitedSet returns a set of the backends of a tree.
func (b *unitBuilder) unitedSet(u united, empty packet.ChoiceKind) set {
	if u.size() == 0 {
		return set{empty: empty}
	}
	s := set{tree: u.tree}
	if u.size() <= maglevMax {
		var list []backend
		for _, e := range u.entries(nil) {
			list = append(list, e.backend)
		}
		s = b.chosen(list)
	}
	if s.ending = u.group == isEnding || u.group == isEndingHere; s.ending {
		for i := range s.size() {
			b.add(s.at(i).id, packet.BackendReady)
		}
	}
	return s
}

// everywhere returns the group that is chosen from in the whole cluster, by the rules of choose.
func (t *tallies) everywhere() group {
	switch {
	case t[isReady] == 0:
		return isEnding
	case t[noNodeHint] == 0 && t[forThisNode] > 0:
		return forThisNode
	case t[noZoneHint] == 0 && t[forThisZone] > 0:
		return forThisZone
	}
	return isReady
}

// here is everywhere for this node alone.
func (t *tallies) here() group {
	if t[isReadyHere] == 0 {
		return isEndingHere
	}
	return isReadyHere
}

// backendsIn returns the backends in a group of some parts, sorted by id. at says which lists.
func backendsIn(parts []*part, at int, g group) (list []backend) {
	for _, p := range parts {
		if p.lists[at].has[g] == 0 {
			continue
		}
		for i := range p.lists[at].list {
			if c := &p.lists[at].list[i]; c.in>>g&1 != 0 {
				list = append(list, c.backend)
			}
		}
	}
	if byID := func(x, y backend) int { return cmp.Compare(x.id, y.id) }; len(parts) > 1 && !slices.IsSortedFunc(list, byID) {
		slices.SortFunc(list, byID)
	}
	return list
}

// apart returns the members of old that now has not, and the other way around.
func apart(old, now []*part) (gone, come []*part) {
	there := make(map[*part]bool, len(old))
	for _, p := range old {
		there[p] = true
	}
	for _, p := range now {
		if there[p] {
			delete(there, p)
		} else {
			come = append(come, p)
		}
	}
	for _, p := range old {
		if there[p] {
			gone = append(gone, p)
		}
	}
	return gone, come
}

// differing returns the pieces of the units gone and come, but for the parts that are in both.
func differing(gone, come []*unit) (out, in []*piece) {
	var old, now []*part
	for _, u := range gone {
		out, old = append(out, &u.piece), append(old, u.parts...)
	}
	for _, u := range come {
		in, now = append(in, &u.piece), append(now, u.parts...)
	}
	old, now = apart(old, now)
	for _, p := range old {
		out = append(out, &p.piece)
	}
	for _, p := range now {
		in = append(in, &p.piece)
	}
	return out, in
}
