package services

import "net/netip"

// Scope narrows the endpoints of a Service to those that one kind of frontend may use.
type Scope struct {
	// Node keeps only endpoints on that node (traffic policy Local). "" is the whole cluster.
	Node string
	// Is4 is the family of the frontend's address: there is no translation between families.
	Is4 bool
}

// Target is an endpoint together with the port on which it serves the Service port asked for.
type Target struct {
	Endpoint *Endpoint // borrowed from the Service
	Port     uint16
}

// Select gives the endpoints of s that new flows to its port p may go to, in the order of s.Endpoints.
//
//   - An endpoint serves p when it has a port of the same name and protocol, and an address of the scope's family.
//   - Ready endpoints are taken; with PublishNotReady all are ready.
//   - Of ready ones in the whole cluster, those meant for this node are taken, when all have a hint and one is; else those meant
//     for its zone, under the same condition (Service.spec.trafficDistribution, which makes the hints).
//   - Only when the scope has no ready one, those that are terminating but still serving are (KEP-1669). The fallback is
//     decided within the scope: a node may serve from its terminating endpoint while other nodes have ready ones.
func Select(s *Service, p *Port, scope Scope) []Target {
	var ready, fallback []Target
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if scope.Node != "" && e.Node != scope.Node {
			continue
		}
		port, ok := targetPort(e, p)
		if !ok || !ofFamily(e.Addr, scope.Is4) {
			continue
		}
		switch {
		case e.Ready || s.PublishNotReady:
			ready = append(ready, Target{e, port})
		case e.Serving && e.Terminating:
			fallback = append(fallback, Target{e, port})
		}
	}
	switch {
	case len(ready) == 0:
		return fallback
	case scope.Node != "":
		return ready
	}
	for _, hint := range [...]func(*Endpoint) Hint{forNode, forZone} {
		if near, ok := hinted(ready, hint); ok {
			return near
		}
	}
	return ready
}

func forNode(e *Endpoint) Hint { return e.ForNode }
func forZone(e *Endpoint) Hint { return e.ForZone }

// hinted gives the targets that are meant for here; ok is false when there is none, or one has no hint: then whoever makes
// hints has not come to it yet, and somebody would be overloaded.
func hinted(targets []Target, hint func(*Endpoint) Hint) (near []Target, ok bool) {
	for _, t := range targets {
		switch hint(t.Endpoint) {
		case NoHint:
			return nil, false
		case Here:
			near = append(near, t)
		}
	}
	return near, len(near) > 0
}

// targetPort is where e serves p.
func targetPort(e *Endpoint, p *Port) (uint16, bool) {
	for i := range e.Ports {
		if ep := &e.Ports[i]; ep.Name == p.Name && ep.Protocol == p.Protocol && ep.Port != 0 {
			return ep.Port, true
		}
	}
	return 0, false
}

// ofFamily reports whether a is an address of the family that something can be reached at.
func ofFamily(a netip.Addr, is4 bool) bool {
	return a.IsValid() && !a.IsUnspecified() && a.Unmap().Is4() == is4
}
