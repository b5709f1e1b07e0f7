package dns

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// Config is everything that the zone of a cluster says. It holds names and what they lead to, and nothing of who is
// served how: an endpoint that no name leads to is not in it.
type Config struct {
	// Addrs are those that this server answers at.
	Addrs []netip.Addr
	// Services are all those with a name. None is nil, and none is changed: Configs that follow one another share
	// them.
	Services []*Service
	// Pods are those with an address that this node knows of, its own at least.
	Pods []Pod
}

// Service is what the name of a Service leads to.
type Service struct {
	Namespace, Name string
	// ExternalName is the target of a CNAME; "" for none. A Service that has one has nothing else.
	ExternalName string
	// ClusterIPs are the Service's addresses. Without any it is headless: its name leads to its Endpoints.
	ClusterIPs []netip.Addr
	// Ports are those of the Service, for SRV records.
	Ports []Port
	// Endpoints are the published ones that have names of their own: all of a headless Service, of others those
	// with a Hostname.
	Endpoints []Endpoint
}

// Port is a port by its name, "" for none.
type Port struct {
	Name     string
	Protocol packet.Proto
	Port     uint16
}

// Endpoint is one address of what serves. A dual-stack pod is two.
type Endpoint struct {
	Addr netip.Addr
	// Hostname is its name below the Service's; "": its address with dashes.
	Hostname string
	// Ports are its own, by the names of the Service's ports.
	Ports []Port
}

// Pod is one with names after its addresses.
type Pod struct {
	Namespace string
	Addrs     []netip.Addr
	// HostNetwork is set when the addresses are the node's, which are not to be known by a pod's name.
	HostNetwork bool
}
