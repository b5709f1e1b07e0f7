package services

import (
	"iter"
	"net/netip"
	"slices"
	"time"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
)

// Config is the desired state: every Service with its endpoints, as one node sees it.
type Config struct {
	// Node is the name of the node that the Table is for.
	Node string
	// NodeAddrs are the addresses on which NodePorts are answered. They include every node's addresses, since a pod
	// may use any of them.
	NodeAddrs []netip.Addr
	// NodeNames[i] is the node that has NodeAddrs[i]. If the list is empty, no other node is known by name.
	NodeNames []string
	// NoNodePorts are addresses among NodeAddrs at which node ports are not answered: see Places.
	NoNodePorts []netip.Addr
	// OwnAddrs are this node's own addresses among NodeAddrs.
	OwnAddrs []netip.Addr
	// ServiceCIDRs are the service ranges. An address inside them that is no frontend is refused, not routed.
	ServiceCIDRs []netip.Prefix
	// ClusterCIDRs are the pod ranges. A client in them, or at one of OwnAddrs, reaches NodePorts and ExternalIPs
	// under the Cluster policy even if the external policy is Local, because its traffic does not come from outside
	// (KEP-1669; kube-proxy does the same).
	ClusterCIDRs []netip.Prefix
	// DNSAddrs are the cluster DNS addresses, answered by the node itself.
	DNSAddrs []netip.Addr
	// Services are sorted by namespace and name. No element is nil. A Service must not be changed after it is here,
	// because successive Configs share Services.
	Services roll.List[*Service]
	// Pods are all pods with an address that this node knows of; its own pods are always among them. A TCP flow to one
	// of them continues when no Service leads to the pod any longer.
	Pods []Pod
	// HostPorts are the hostPorts of this node's pods. If two want the same port, the first gets it.
	HostPorts []HostPort
}

// Pod is a pod that is alive.
type Pod struct {
	// ID is the pod's UID, as in Endpoint.ID. While the pod lives, a TCP flow to it continues even if no Service leads
	// to it any longer. ID may be empty.
	ID    string
	Addrs []netip.Addr
}

// Service is one v1.Service, reduced to what the data path needs. A Service without addresses and node ports is listed
// only for its Endpoints.
type Service struct {
	Namespace, Name string
	// ClusterIPs are empty for a headless Service.
	ClusterIPs []netip.Addr
	// ExternalIPs are load balancer ingress addresses, and spec.externalIPs if the cluster honours them.
	ExternalIPs []netip.Addr
	// SocketIPs are load balancer ingress addresses at which clients inside the cluster, too, have to come through a
	// host's socket (ipMode Proxy, KEP-1860): addresses of nodes.
	SocketIPs []netip.Addr
	// Proxy is the version of the PROXY protocol whose header is put before each TCP connection that comes through a
	// host's socket at an ExternalIP, a SocketIP or a node port; 0 means none.
	Proxy uint8
	// SourceRanges are the clients that may use ExternalIPs and SocketIPs; nil allows all. If no range has the client's
	// family, the client is not allowed.
	SourceRanges []netip.Prefix
	Ports        []Port
	// Balance says how the backend of a new flow is chosen. Affinity takes precedence.
	Balance balance.Method
	// Affinity is the timeout of ClientIP session affinity; 0 means no affinity.
	Affinity time.Duration
	// InternalLocal and ExternalLocal report that the internal or external traffic policy is Local.
	InternalLocal, ExternalLocal bool
	PublishNotReady              bool
	// HealthCheckNodePort is the port on every node at which load balancers ask whether the node has endpoints of the
	// Service (spec.healthCheckNodePort); 0 means none.
	HealthCheckNodePort uint16
	Endpoints           []Endpoint
	// Parts has the endpoints of a Service with very many instead: then one that changes costs its part, and not all.
	Parts []*Part
}

// Part is a part of a Service's endpoints. It must not be changed after it is in a Service, as successive Services
// share it. An endpoint may be in several parts.
type Part struct{ Endpoints []Endpoint }

// All yields all endpoints, those of parts included.
func (s *Service) All() iter.Seq[*Endpoint] {
	return func(yield func(*Endpoint) bool) {
		for i := range s.Endpoints {
			if !yield(&s.Endpoints[i]) {
				return
			}
		}
		for _, p := range s.Parts {
			for i := range p.Endpoints {
				if !yield(&p.Endpoints[i]) {
					return
				}
			}
		}
	}
}

// Len returns the number of endpoints.
func (s *Service) Len() int {
	n := len(s.Endpoints)
	for _, p := range s.Parts {
		n += len(p.Endpoints)
	}
	return n
}

// listed returns all endpoints in one list, which must not be changed.
func (s *Service) listed() []Endpoint {
	if len(s.Parts) == 0 {
		return s.Endpoints
	}
	list := slices.Grow(slices.Clone(s.Endpoints), s.Len()-len(s.Endpoints))
	for _, p := range s.Parts {
		list = append(list, p.Endpoints...)
	}
	return list
}

// Port is one port of a Service.
type Port struct {
	Name     string
	Protocol packet.Proto // TCP, UDP or SCTP
	Port     uint16
	NodePort uint16 // 0: none
}

// Endpoint is one endpoint of a Service, from its EndpointSlices.
type Endpoint struct {
	// Addr is the endpoint's address. A dual-stack pod has two Endpoints.
	Addr netip.Addr
	// ID identifies the server behind the address: the pod's UID, or the address itself if there is no pod.
	ID   string
	Node string
	// Ready, Serving, Terminating are the EndpointSlice conditions (KEP-1672).
	Ready, Serving, Terminating bool
	// ForNode and ForZone say whether the endpoint is meant for clients on this node and for clients in this node's
	// zone (KEP-2433, KEP-3015).
	ForNode, ForZone Hint
	// Ports are the target ports, by the Service port's name and protocol.
	Ports []EndpointPort
}

// Hint says whether an endpoint is meant for clients here.
type Hint uint8

// NoHint means that the endpoint carries no hint; Elsewhere and Here say for whom the hint is.
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
