package translate

import (
	"cmp"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

const healthPortField = "spec.healthCheckNodePort"

// claim is what one Service alone may have: an address, a port of all nodes, or a port at an address from outside.
type claim struct {
	addr  netip.Addr // invalid for a node port
	port  uint16     // 0 for an address with all of its ports
	proto packet.Proto
}

// claimed is a claim and the field that says so.
type claimed struct {
	claim
	field string
	// outside is set when the address is one from outside: a load balancer's, or of spec.externalIPs. Services share
	// those, on different ports; a cluster address goes before them.
	outside bool
}

// claims are those of all Services.
type claims struct {
	groups[claim, *front]
	version int // another one when something has another owner
}

// set brings them up to date, and gives the Services that have, or had, to do with others that want the same.
func (c *claims) set(fronts []*front) (contested []*front) {
	changed := c.groups.set(fronts, compareFronts, func(f *front, yield func(claim)) {
		for i := range f.claims {
			yield(f.claims[i].claim)
		}
	})
	moved := false
	for k, were := range changed {
		now := c.of[k]
		if len(now) > 1 || len(were) > 1 {
			contested = append(contested, now...)
		}
		moved = moved || !sameOwner(k, ownerOf(k, were), ownerOf(k, now))
	}
	if moved {
		c.version++
	}
	return contested
}

// sameOwner reports whether two owners of a claim, nil for none, are one Service, which has it in the same way.
func sameOwner(k claim, a, b *front) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.name() == b.name() && a.hasNodePort(k.port, k.proto) == b.hasNodePort(k.port, k.proto)
}

// owner gives the Service that has what is claimed; nil: nobody alone. A cluster address goes before one from outside.
// Of two that are alike the older Service has it, so that nobody takes from others what they had, and of two as old
// the lesser name, so that all nodes agree.
func (c *claims) owner(k claim) *front { return ownerOf(k, c.of[k]) }

func ownerOf(k claim, group []*front) (owner *front) {
	for _, f := range group {
		if k.addr.IsValid() && k.port == 0 && !f.isAt(k.addr) {
			continue
		}
		if owner == nil || cmp.Or(f.made.Compare(owner.made), compareFronts(f, owner)) < 0 {
			owner = f
		}
	}
	return owner
}

// isAt reports whether a Service asks for a cluster address.
func (f *front) isAt(a netip.Addr) bool {
	return slices.ContainsFunc(f.claims, func(c claimed) bool { return !c.outside && c.claim == claim{addr: a} })
}

// hasNodePort reports whether a Service asks for a node port, by which it is served.
func (f *front) hasNodePort(port uint16, proto packet.Proto) bool {
	return port != 0 && slices.ContainsFunc(f.Ports, func(p services.Port) bool { return p.NodePort == port && p.Protocol == proto })
}

// settle takes from a Service what others have.
func (c *claims) settle(f *front, say *kube.Report) *front {
	kept := f
	for i := range f.claims {
		k := &f.claims[i]
		owner := c.owner(k.claim)
		if owner == nil || owner == f {
			continue
		}
		if kept == f {
			kept = f.clone()
		}
		kept.lose(k, owner.ref(), say)
	}
	return kept
}

// clone gives a copy of which addresses, ports and claims may be changed.
func (f *front) clone() *front {
	own := *f
	own.claims = slices.Clone(f.claims)
	own.ClusterIPs, own.ExternalIPs, own.Ports = slices.Clone(f.ClusterIPs), slices.Clone(f.ExternalIPs), slices.Clone(f.Ports)
	return &own
}

// lose takes from a Service what another has.
func (f *front) lose(k *claimed, owner kube.Ref, say *kube.Report) {
	switch {
	case k.outside && k.port == 0:
		say.Errorf(f.ref(), k.field, "%s is the cluster address of %s, and nobody else's: have the load balancer give another", k.addr, owner)
		f.leave(k)
	case k.outside:
		say.Errorf(f.ref(), k.field, "%s %d/%s belongs to %s already: choose another address or port", k.addr, k.port, protoName(k.proto), owner)
		f.leave(k)
	case k.addr.IsValid():
		say.Errorf(f.ref(), k.field, "%s belongs to %s already: choose another address", k.addr, owner)
		f.leave(k)
	default:
		say.Errorf(f.ref(), k.field, "%d/%s belongs to %s already: choose another", k.port, protoName(k.proto), owner)
		if k.field == healthPortField {
			f.HealthCheckNodePort = 0
			return
		}
		for i := range f.Ports {
			if p := &f.Ports[i]; p.NodePort == k.port && p.Protocol == k.proto {
				p.NodePort = 0
			}
		}
	}
}
