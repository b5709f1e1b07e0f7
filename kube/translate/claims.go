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

// claim is something that only one Service may have: an address, a port on all nodes, or a port at an external
// address.
type claim struct {
	addr  netip.Addr // invalid for a node port
	port  uint16     // 0 for an address with all of its ports
	proto packet.Proto
}

// claimed is a claim and the field that makes it.
type claimed struct {
	claim
	field string
	// outside is set when the address is an external one: a load balancer's, or one of spec.externalIPs. Several
	// Services may share an external address on different ports. A cluster address takes precedence over an external
	// one.
	outside bool
}

// claims holds the claims of all Services.
type claims struct {
	groups[claim, *front]
	version int // changes whenever a claim changes its owner
}

// set replaces the Services whose claims are held. It returns the Services that share, or shared, a changed claim
// with others.
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

// sameOwner reports whether two owners of a claim (nil for none) are the same Service and have the claim in the same
// way.
func sameOwner(k claim, a, b *front) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.name() == b.name() && a.hasNodePort(k.port, k.proto) == b.hasNodePort(k.port, k.proto)
}

// owner returns the Service that has a claim, or nil when no Service does. A cluster address takes precedence over an
// external one. Otherwise the older Service wins, so that nobody takes what others have already. Of two Services of
// the same age the lesser name wins, so that all nodes agree.
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

// isAt reports whether a Service claims a as a cluster address.
func (f *front) isAt(a netip.Addr) bool {
	return slices.ContainsFunc(f.claims, func(c claimed) bool { return !c.outside && c.claim == claim{addr: a} })
}

// hasNodePort reports whether a Service claims port as a node port of one of its ports.
func (f *front) hasNodePort(port uint16, proto packet.Proto) bool {
	return port != 0 && slices.ContainsFunc(f.Ports, func(p services.Port) bool { return p.NodePort == port && p.Protocol == proto })
}

// settle returns f without the claims that other Services own, and reports each of them.
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

// clone returns a copy whose addresses, ports and claims may be changed.
func (f *front) clone() *front {
	own := *f
	own.claims = slices.Clone(f.claims)
	own.ClusterIPs, own.ExternalIPs, own.Ports = slices.Clone(f.ClusterIPs), slices.Clone(f.ExternalIPs), slices.Clone(f.Ports)
	return &own
}

// lose takes the claim k from a Service, because owner has it, and reports that.
func (f *front) lose(k *claimed, owner kube.Ref, say *kube.Report) {
	switch {
	case k.outside && k.port == 0:
		say.Errorf(f.ref(), k.field, "%s is the cluster address of %s: have the load balancer give another", k.addr, owner)
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
