package kube

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// NodeStatus is what an agent knows of its own node and tells the other nodes.
type NodeStatus struct {
	// Name is the name of the Node.
	Name string
	// PublicKey is the WireGuard public key in base64.
	PublicKey string
	// Endpoint is the address where WireGuard listens; invalid when it is unknown.
	Endpoint netip.AddrPort
	// Features lists the features that other nodes must know of before they rely on them, by their names in package
	// kube.
	Features []string
	// Addrs are the node's addresses, for a Node that was written without any.
	Addrs []netip.Addr
	// Ready says whether the node's network works. When it does not, Reason says why in one sentence. When Ready is
	// false and Reason empty, the state is not known yet.
	Ready  bool
	Reason string
	// Problems are the problems that the agent sees.
	Problems []Problem
}

// StatusAnnotations lists the annotations that an agent, and nobody else, writes on its own Node.
var StatusAnnotations = []string{PublicKeyAnnotation, EndpointAnnotation, FeaturesAnnotation, ProblemsAnnotation}

// Annotations returns the annotations that express s on a Node. An annotation of StatusAnnotations that is not in the
// result must be removed from the Node.
func (s *NodeStatus) Annotations() map[string]string {
	list := make([]Problem, len(s.Problems)) // an empty list, not null
	for i, p := range s.Problems {
		list[i] = p.Visible()
	}
	problems, _ := json.Marshal(list) // cannot fail: only strings
	m := map[string]string{ProblemsAnnotation: string(problems)}
	if s.PublicKey != "" {
		m[PublicKeyAnnotation] = s.PublicKey
	}
	if s.Endpoint.IsValid() {
		m[EndpointAnnotation] = s.Endpoint.String()
	}
	if len(s.Features) > 0 {
		m[FeaturesAnnotation] = strings.Join(s.Features, ",")
	}
	return m
}
