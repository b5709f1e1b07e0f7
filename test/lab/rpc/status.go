package rpc

import (
	"net/netip"
	"time"
)

// Status is how a lab is.
type Status struct {
	Name, Dir string
	Files     []string
	// Product is the executable that nodes run.
	Product string
	// PID is that of the supervisor, inside of its process namespace.
	PID int
	// Underlay and Outside are the network between the nodes and the addresses of the client on it.
	Underlay []netip.Prefix
	Outside  []netip.Addr
	MTU      int
	Nodes    []NodeStatus
	Pods     []PodStatus
	Services []ServiceStatus
	// Ingresses are all of them, those of other controllers too.
	Ingresses []IngressStatus
	// Impairments are the impaired pairs, as sentences.
	Impairments []string
	// Applied counts the versions of the files that were applied. ApplyError is what is wrong with the present one; the
	// last good one stays applied.
	Applied    int
	ApplyError string
	// Problems are sentences on what does not work.
	Problems []string
}

// NodeStatus is how a node is.
type NodeStatus struct {
	Name     string
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix
	External bool
	// Agent is "ready", "starting", "down" or, for an external node, "none".
	Agent    string
	PID      int // of the agent, inside of the lab
	Restarts int
	Dir      string
	// Socket is that of the agent's local API; "" for an external node.
	Socket   string
	Problems []string
}

// PodStatus is how a pod is.
type PodStatus struct {
	Namespace, Name, UID, Node string
	Addrs                      []netip.Addr
	Phase                      string
	Ready, Terminating         bool
	Restarts                   int
	Started                    time.Time
	PIDs                       []int // of its containers, inside of the lab
	Message                    string
}

// Key is "namespace/name".
func (p *PodStatus) Key() string { return p.Namespace + "/" + p.Name }

// ServiceStatus is how a Service is.
type ServiceStatus struct {
	Namespace, Name, Type string
	ClusterIPs            []string
	Ports                 []string // "80/TCP", "80:30080/TCP"
	Ready, Endpoints      int
}

// IngressStatus is how an Ingress is.
type IngressStatus struct {
	Namespace, Name string
	Hosts           []string // "*" for any
	Addrs           []string // where it is served
}

// NotReady lists what is not as it should be, as sentences; none when everything is.
func (s *Status) NotReady() []string {
	var out []string
	if s.ApplyError != "" {
		out = append(out, s.ApplyError)
	}
	for _, n := range s.Nodes {
		if n.Agent != "ready" && !n.External {
			out = append(out, "agent of node "+n.Name+" is "+n.Agent)
		}
	}
	for _, p := range s.Pods {
		if p.Ready && !p.Terminating || p.Phase == "Succeeded" {
			continue
		}
		line := "pod " + p.Key() + " is " + p.Phase
		if p.Terminating {
			line += ", terminating"
		}
		if p.Message != "" {
			line += ": " + p.Message
		}
		out = append(out, line)
	}
	return out
}
