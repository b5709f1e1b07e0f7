package kube

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// NodeStatus is what an agent knows of its own node and the others need to know.
type NodeStatus struct {
	// Name is that of the Node.
	Name string
	// PublicKey is the WireGuard public key in base64.
	PublicKey string
	// Endpoint is where WireGuard listens; invalid when that is unknown.
	Endpoint netip.AddrPort
	// Features are what the node can do that others must know of before they count on it, by the names that kube
	// gives.
	Features []string
	// Addrs are the node's addresses, for a Node that was written without.
	Addrs []netip.Addr
	// Ready says whether the node's network works; Reason is one sentence when it does not. Neither: that is not
	// known yet.
	Ready  bool
	Reason string
	// Problems are what the agent sees wrong.
	Problems []Problem
}

// StatusAnnotations are those that an agent writes on its own Node, and nobody else does.
var StatusAnnotations = []string{PublicKeyAnnotation, EndpointAnnotation, FeaturesAnnotation, ProblemsAnnotation}

// Annotations are what s comes to on a Node. Those of StatusAnnotations that are not in there must not be on it.
func (s *NodeStatus) Annotations() map[string]string {
	list := make([]Problem, len(s.Problems)) // an empty list, not null
	for i, p := range s.Problems {
		list[i] = p.Visible()
	}
	problems, _ := json.Marshal(list) // strings alone
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
