package translate

import (
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// WireGuardPort is where a Node without kube.EndpointAnnotation is expected to listen.
const WireGuardPort = 51820

// Options is what a node knows of itself and no object says.
type Options struct {
	// Node is this node's name; "" is for what all nodes have in common.
	Node string
	// UnderlayMTU is the MTU in bytes of the network between the nodes, 0 for addressing.DefaultUnderlayMTU.
	UnderlayMTU int
	// ExternalIPs has spec.externalIPs of Services honoured, with which whoever may write a Service takes over
	// any address (CVE-2020-8554).
	ExternalIPs bool
}

// Result is everything that follows from a snapshot of the cluster. Its lists are sorted, so that equal clusters give
// equal Results. Results that follow one another share what is equal, so nothing of them may be changed.
type Result struct {
	Netstack netstack.Config
	Overlay  overlay.Config
	Services services.Config
	DNS      dns.Config
	Ingress  ingress.Config
	// Leaving is set when this node is being deleted, so that load balancers should send nothing here any more.
	Leaving bool
	// Problems are the objects or fields that were left out or look wrong, errors first.
	Problems []kube.Problem
}
