package policy

import "tapestry.dev/tapestry/netstack/packet"

// side is what the policies that select a pod permit it in one direction.
type side struct {
	realm    *realm
	law      *law
	rules    set // those of the policies
	egress   bool
	pod      *Pod
	isolates uint64 // the first policy, as the rule of what none permits
}

// other is the other end of a flow.
type other struct {
	addr  packet.Addr
	group int
	pod   *Pod // nil for whoever is no pod
}

func (s *side) judge(who *other, f *Flow) Ruling {
	if n := s.permits(who, f.Proto, f.Port); n >= 0 {
		return Ruling{Rule: s.law.known[n]}
	}
	return Ruling{Deny, s.isolates}
}

// permits returns the number of the first rule that permits a flow to a port, or -1.
func (s *side) permits(who *other, proto packet.Proto, port uint16) int {
	l, at := s.law, numbered(proto)
	by := [3]set{l.everybody, s.realm.naming(who.group), l.addresses.at(placeOf(&who.addr))}
	if at < 0 {
		return first(s.rules, l.anyPort, by)
	}
	if n := first(s.rules, l.ports[at].at(place{lo: uint64(port)}), by); n >= 0 || len(l.named) == 0 {
		return n
	}
	server := s.pod
	if s.egress {
		server = who.pod
	}
	if server == nil {
		return -1
	}
	for i := range server.Ports {
		if p := &server.Ports[i]; p.Proto == proto && p.Port == port {
			if rules := l.named[portName{proto, p.Name}]; rules != nil {
				if n := first(s.rules, rules, by); n >= 0 {
					return n
				}
			}
		}
	}
	return -1
}
