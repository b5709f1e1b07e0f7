package translate

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// WireGuardPort is the port assumed for a Node without kube.EndpointAnnotation.
const WireGuardPort = 51820

// Options holds what a node knows of itself and no object says.
type Options struct {
	// Node is this node's name; "" computes what all nodes have in common.
	Node string
	// UnderlayMTU is the MTU in bytes of the network between the nodes, 0 for addressing.DefaultUnderlayMTU.
	UnderlayMTU int
	// ExternalIPs honours spec.externalIPs of Services. Whoever may write a Service can then take over any address
	// (CVE-2020-8554).
	ExternalIPs bool
	// Ranges are ranges of the cluster besides those in objects; nil for none. They are compared by the pointer, and
	// must not change.
	Ranges *Ranges
	// NodePorts says at which addresses of nodes node ports are served; nil for all. It is compared by the pointer, and
	// must not change. Every node's addresses are judged by it, since no node says how it judges its own.
	NodePorts *services.Places
}

// Ranges are the ranges of a cluster as its operator names them, and as this node's host routes them into its host TAP.
// An address of them that nobody has is refused. Nothing is dialled there over host sockets, because the host would
// send it back.
type Ranges struct{ Pods, Services []netip.Prefix }

// With returns all ranges of r and of others.
func (r Ranges) With(others Ranges) Ranges {
	return Ranges{
		addressing.Outermost(slices.Concat(r.Pods, others.Pods)), addressing.Outermost(slices.Concat(r.Services, others.Services)),
	}
}

// Equal reports whether both are the same.
func (r Ranges) Equal(other Ranges) bool {
	return slices.Equal(r.Pods, other.Pods) && slices.Equal(r.Services, other.Services)
}

// Result is everything that follows from a snapshot of the cluster. Its lists are sorted, so equal clusters have
// equal Results. Successive Results share their equal parts, so no part may be changed.
type Result struct {
	Netstack netstack.Config
	Overlay  overlay.Config
	Services services.Config
	DNS      dns.Config
	Ingress  ingress.Config
	// Quotas are what pods of this node may send, by "namespace/name"; nil when nobody says.
	Quotas map[string]quota.Quota
	// Exits says which pods of this node have egress addresses.
	Exits exit.Pods
	// Policy says who may talk to whom, as far as this node judges it.
	Policy policy.Config
	// Announce is what is announced to the network outside. It is the same pointer while that does not change.
	Announce *announce.Plan
	// Leaving is set when this node is being deleted: load balancers should send it no new traffic.
	Leaving bool
	// Problems lists the objects and fields that were left out or look wrong, errors first.
	Problems []kube.Problem
}
