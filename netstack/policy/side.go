package policy

import (
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// side is what the policies that select a pod permit it in one direction.
type side struct {
	reading  *law.Reading
	code     *code
	rules    law.Set // those of the policies
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
	q := law.Query{Proto: f.Proto, Port: f.Port, Addr: who.addr}
	server := s.pod
	if s.egress {
		server = who.pod
	}
	if server != nil {
		q.Server = server.Ports
	}
	if n := s.code.law.First(s.rules, s.reading.Naming(who.group).Certain, &q); n >= 0 {
		return Ruling{Rule: uint64(s.code.known[n])}
	}
	return Ruling{Deny, s.isolates}
}
