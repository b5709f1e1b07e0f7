package rpc

import (
	"net/netip"
	"time"
)

// Status is the status of a lab.
type Status struct {
	Name, Dir string
	Files     []string
	// Product is the executable that nodes run.
	Product string
	// PID is the supervisor's process ID inside of its PID namespace.
	PID int
	// Underlay is the network between the nodes. Outside has the addresses of the outside client on it.
	Underlay []netip.Prefix
	Outside  []netip.Addr
	MTU      int
	Nodes    []NodeStatus
	Pods     []PodStatus
	Services []ServiceStatus
	// Ingresses lists all Ingresses, those of other controllers included.
	Ingresses []IngressStatus
	// Impairments has a sentence for each impaired path.
	Impairments []string
	// Applied counts the versions of the files that were applied. ApplyError says what is wrong with the present
	// version; the last good version then stays applied.
	Applied    int
	ApplyError string
	// Problems are sentences about what does not work.
	Problems []string
}

// NodeStatus is the status of a node.
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
	// Socket is the path of the agent's local API; "" for an external node.
	Socket   string
	Problems []string
}

// PodStatus is the status of a pod.
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

// Key returns "namespace/name".
func (p *PodStatus) Key() string { return p.Namespace + "/" + p.Name }

// ServiceStatus is the status of a Service.
type ServiceStatus struct {
	Namespace, Name, Type string
	ClusterIPs            []string
	Outside               []string // of its load balancer
	Ports                 []string // "80/TCP", "80:30080/TCP"
	Ready, Endpoints      int
}

// IngressStatus is the status of an Ingress.
type IngressStatus struct {
	Namespace, Name string
	Hosts           []string // "*" for any
	Addrs           []string // where it is served
}

// NotReady returns a sentence for each thing that is not ready; none when everything is.
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
