package services

import (
	"net/netip"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

// Config is the whole desired state: every Service with its endpoints, as one node sees it.
type Config struct {
	// Node is the node that the Table is for.
	Node string
	// NodeAddrs are the addresses on which NodePorts are answered: all nodes', since a pod may use any of them.
	NodeAddrs []netip.Addr
	// NodeNames are the nodes that have them, by the same index; none: nodes other than this one have no names.
	NodeNames []string
	// OwnAddrs are this node's own addresses among NodeAddrs.
	OwnAddrs []netip.Addr
	// ServiceCIDRs are the service ranges: an address inside that is no frontend is refused, not routed.
	ServiceCIDRs []netip.Prefix
	// ClusterCIDRs are the pod ranges. A client there, or at one of OwnAddrs, reaches NodePorts and ExternalIPs
	// under the Cluster policy even where the external policy is Local, since its traffic never was external
	// (KEP-1669, as kube-proxy does).
	ClusterCIDRs []netip.Prefix
	// DNSAddrs are the cluster DNS addresses, answered by the node itself.
	DNSAddrs []netip.Addr
	// Services are sorted by namespace and name. None is nil, and none is changed: Configs that follow one
	// another share them.
	Services []*Service
	// Pods are all pods with an address that this node knows of, its own at least: who lives on when no Service
	// leads to it.
	Pods []Pod
	// HostPorts are those of this node's pods. Where two want the same, the first has it.
	HostPorts []HostPort
}

// Pod is one that lives.
type Pod struct {
	// ID is the pod's UID, as in Endpoint.ID: while such a pod lives, a TCP flow to it goes on even when no
	// Service leads to it any longer. May be empty.
	ID    string
	Addrs []netip.Addr
}

// Service is one v1.Service, without what the data path does not need. One without addresses and node ports is there
// for its Endpoints alone.
type Service struct {
	Namespace, Name string
	// ClusterIPs are empty for a headless Service.
	ClusterIPs []netip.Addr
	// ExternalIPs are load balancer ingress addresses, and spec.externalIPs where they are honoured.
	ExternalIPs []netip.Addr
	// SourceRanges are the clients that ExternalIPs are for; nil for all. Ranges of another family alone let
	// nobody in.
	SourceRanges []netip.Prefix
	Ports        []Port
	// Affinity is the ClientIP session affinity timeout; 0 for none.
	Affinity time.Duration
	// InternalLocal, ExternalLocal: the traffic policies are Local.
	InternalLocal, ExternalLocal bool
	PublishNotReady              bool
	// HealthCheckNodePort is the port of every node on which load balancers ask whether it has endpoints
	// (healthCheckNodePort); 0: none.
	HealthCheckNodePort uint16
	Endpoints           []Endpoint
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol packet.Proto // TCP, UDP or SCTP
	Port     uint16
	NodePort uint16 // 0: none
}

// Endpoint is one endpoint of a Service, out of its EndpointSlices.
type Endpoint struct {
	// Addr is one address; a dual-stack pod is two Endpoints.
	Addr netip.Addr
	// ID is the identity of what serves behind the address: the pod's UID, else the address itself.
	ID   string
	Node string
	// Ready, Serving, Terminating are the EndpointSlice conditions (KEP-1672).
	Ready, Serving, Terminating bool
	// ForNode and ForZone say whether the endpoint is meant for clients on this node and in its zone (KEP-2433,
	// KEP-3015).
	ForNode, ForZone Hint
	// Ports are the target ports by Service port name and protocol.
	Ports []EndpointPort
}

// Hint says whom an endpoint is meant for.
type Hint uint8

// The hints.
const (
	NoHint Hint = iota
	Elsewhere
	Here
)

// EndpointPort is the port of an endpoint that serves the Service port of the same name and protocol.
type EndpointPort struct {
	Name     string
	Protocol packet.Proto
	Port     uint16
}
