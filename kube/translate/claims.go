package translate

import (
	"cmp"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
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
	owners  map[claim]*front
	version int // changes whenever a claim changes its owner
}

// set replaces the Services whose claims are held. It returns the Services that share a claim which has got another
// owner. Many Services may claim one address, so whoever joins them, and loses, costs the others nothing.
func (c *claims) set(fronts []*front) (contested []*front) {
	changed := c.groups.set(fronts, compareFronts, func(f *front, yield func(claim)) {
		for i := range f.claims {
			yield(f.claims[i].claim)
		}
	})
	if c.owners == nil {
		c.owners = make(map[claim]*front, len(c.of))
		for k, group := range c.of {
			c.owners[k] = ownerOf(k, group)
		}
		return nil
	}
	moved := false
	for k := range changed {
		was, now := c.owners[k], ownerOf(k, c.of[k])
		if now == nil {
			delete(c.owners, k)
		} else {
			c.owners[k] = now
		}
		if (was == nil) != (now == nil) || now != nil && was.name() != now.name() {
			contested = append(contested, c.of[k]...)
		}
		moved = moved || !sameOwner(k, was, now)
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
func (c *claims) owner(k claim) *front { return c.owners[k] }

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
func (f *front) isAt(a netip.Addr) bool { return slices.Contains(f.ClusterIPs, a) }

// hasNodePort reports whether a port on all nodes that the Service owns is a node port. Its only other one is its port
// for health checks. Port 0 is no port on all nodes.
func (f *front) hasNodePort(port uint16, proto packet.Proto) bool {
	return port != 0 && (port != f.HealthCheckNodePort || proto != packet.TCP)
}

// settle returns f without the claims that other Services own, and reports them.
func (c *claims) settle(f *front, say *kube.Report) *front {
	var lost losses
	said := len(say.Problems)
	for i := range f.claims {
		k := &f.claims[i]
		if owner := c.owner(k.claim); owner != nil && owner != f {
			f.lose(k, owner.ref(), say)
			lost.add(k)
		}
	}
	fewer(say, said, f.ref())
	return f.without(&lost)
}

// losses are claims that a Service does not get. The zero value has none.
type losses struct {
	addrs  map[address]bool
	ports  map[portKey]bool // node ports
	health bool             // the port for health checks
}

// address is an address in one of the two ways in which a Service claims it.
type address struct {
	netip.Addr
	outside bool
}

// add adds a claim. An address that is lost at one port is lost whole.
func (l *losses) add(k *claimed) {
	switch {
	case k.addr.IsValid():
		if l.addrs == nil {
			l.addrs = map[address]bool{}
		}
		l.addrs[address{k.addr, k.outside}] = true
	case k.field == healthPortField:
		l.health = true
	default:
		if l.ports == nil {
			l.ports = map[portKey]bool{}
		}
		l.ports[portKey{k.port, k.proto}] = true
	}
}

// without returns f without what it has lost: f itself when that is nothing.
func (f *front) without(l *losses) *front {
	if len(l.addrs) == 0 && len(l.ports) == 0 && !l.health {
		return f
	}
	kept := *f
	is := func(outside bool) func(netip.Addr) bool {
		return func(a netip.Addr) bool { return l.addrs[address{a, outside}] }
	}
	if len(l.addrs) > 0 {
		kept.claims = slices.DeleteFunc(slices.Clone(f.claims), func(c claimed) bool { return l.addrs[address{c.addr, c.outside}] })
		kept.ClusterIPs = slices.DeleteFunc(slices.Clone(f.ClusterIPs), is(false))
		kept.ExternalIPs = slices.DeleteFunc(slices.Clone(f.ExternalIPs), is(true))
		kept.SocketIPs = slices.DeleteFunc(slices.Clone(f.SocketIPs), is(true))
	}
	if len(l.ports) > 0 {
		kept.Ports = slices.Clone(f.Ports)
		for i := range kept.Ports {
			if p := &kept.Ports[i]; l.ports[portKey{p.NodePort, p.Protocol}] {
				p.NodePort = 0
			}
		}
	}
	if l.health {
		kept.HealthCheckNodePort = 0
	}
	return &kept
}

// lose reports that owner has the claim k of a Service.
func (f *front) lose(k *claimed, owner kube.Ref, say *kube.Report) {
	switch {
	case k.outside && k.port == 0:
		say.Errorf(f.ref(), k.field, "%s is the cluster address of %s: have the load balancer give another", k.addr, owner)
	case k.outside:
		say.Errorf(f.ref(), k.field, "%s %d/%s belongs to %s already: choose another address or port", k.addr, k.port, protoName(k.proto), owner)
	case k.addr.IsValid():
		say.Errorf(f.ref(), k.field, "%s belongs to %s already: choose another address", k.addr, owner)
	default:
		say.Errorf(f.ref(), k.field, "%d/%s belongs to %s already: choose another", k.port, protoName(k.proto), owner)
	}
}
