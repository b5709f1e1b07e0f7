package dns

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// Config is everything that a cluster's zone contains. It holds names and what they lead to. It does not hold
// endpoints that have no name.
type Config struct {
	// Addrs are the addresses at which this server answers.
	Addrs []netip.Addr
	// Services are all Services. No element is nil. A Service must not be changed after it is here, because successive
	// Configs share Services.
	Services []*Service
	// Pods are the pods with an address that this node knows of; its own pods are always among them.
	Pods []Pod
}

// Service is a Service's name and what it leads to.
type Service struct {
	Namespace, Name string
	// ExternalName is the target of a CNAME; "" means none. A Service with an ExternalName has no other records.
	ExternalName string
	// ClusterIPs are the Service's addresses. If there are none, the Service is headless and its name leads to its
	// Endpoints.
	ClusterIPs []netip.Addr
	// Ports are the Service's ports, for SRV records.
	Ports []Port
	// Endpoints are the published endpoints with names of their own: all endpoints of a headless Service, and those
	// with a Hostname of other Services.
	Endpoints []Endpoint
}

// Port is a port and its name; the name may be "".
type Port struct {
	Name     string
	Protocol packet.Proto
	Port     uint16
}

// Endpoint is one address of an endpoint. A dual-stack pod has two Endpoints.
type Endpoint struct {
	Addr netip.Addr
	// Hostname is the label of the endpoint below the Service's name. If it is "", the label is the address with
	// dashes.
	Hostname string
	// Ports are the endpoint's own ports, by the names of the Service's ports.
	Ports []Port
}

// Pod is a pod whose addresses have names.
type Pod struct {
	Namespace string
	Addrs     []netip.Addr
	// HostNetwork is set when the addresses are the node's. They get no reverse name of a pod then.
	HostNetwork bool
}

// Choices are what an operator decides.
type Choices struct {
	// PodsByForm answers for the pod name of every address in every namespace, whether there is such a pod or not.
	// Without it, only the pods in the Config have such names.
	PodsByForm bool
	// LowerCase asks upstreams for names in lower case. Without it, the spelling is random, so that a forger has to
	// guess it.
	LowerCase bool
}
