// Package localapi is what an agent tells whoever asks on its node: how the node is, and tables of what it knows and
// counts. It is read only, on a socket of its own: the one through which pods are attached (package cni) is for the
// container runtime alone.
//
// # Protocol
//
// Messages are package fdpass's, one answer for each request. "node" is answered by a Node. "rows" names a table and is
// answered by its first rows, and "more" by those that follow, as the table was when it was asked for; a table of any
// length so comes in messages of a bounded one.
package localapi

import (
	"encoding/json"
	"errors"
	"net/netip"
	"time"
)

// Node is what there is to tell of a node beside its tables. What the agent does not know before the cluster's first
// snapshot is zero until then.
type Node struct {
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	PublicKey string    `json:"publicKey,omitempty"` // WireGuard's
	// Missing are sentences that say what keeps the node from being ready; none when it is.
	Missing []string `json:"missing,omitempty"`
	// Source is where the cluster's objects come from, Updated when the last of them were in force.
	Source  string    `json:"source"`
	Updated time.Time `json:"updated,omitzero"`
	// APIServer is the URL of the API server that answered last; "" without one.
	APIServer string `json:"apiServer,omitempty"`
	// HostPort: the node was given a host TAP, which takes NET_ADMIN once.
	HostTAP bool `json:"hostPort"`
	// Addresses are the node's on the underlay, PodCIDRs its pods'; MTU in bytes is the pods'.
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	// DNS are the addresses on which cluster DNS answers.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// DefaultSocket is where an agent in a cluster answers.
const DefaultSocket = "/run/tapestry/api.sock"

// ErrUnavailable tells that the agent cannot be reached at the moment. It comes from the client alone.
var ErrUnavailable = errors.New("the agent of this node cannot be reached")

// The requests.
const (
	opNode = "node"
	opRows = "rows"
	opMore = "more"
)

type request struct {
	Op    string `json:"op"`
	Table string `json:"table,omitempty"`
}

type answer struct {
	Error string            `json:"error,omitempty"`
	Node  *Node             `json:"node,omitempty"`
	Rows  []json.RawMessage `json:"rows,omitempty"`
	// More rows are there to be asked for.
	More bool `json:"more,omitempty"`
}
