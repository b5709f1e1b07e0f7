// Package localapi is what an agent tells whoever asks on its node: how the node is, and tables of what the agent knows
// and counts. It is read only, on a socket of its own; the socket through which pods are attached (package cni) is for
// the container runtime only.
//
// # Protocol
//
// Messages are those of package fdpass, with one answer for each request. The request "node" is answered by a Node.
// "rows" names a table, which may answer a question that comes along, and is answered by the table's first rows; each
// "more" is answered by the rows that follow, as the table was at the time of "rows". So a table of any length comes
// in messages of bounded length.
//
// "flows" with a query is answered by the first events that the query is for, and each further "flows" by those that
// follow, with how many of them were lost so far: a client that asks too slowly loses the oldest. When there is none
// and more may come, the answer comes after a second, without events.
//
// Processes beside the agent that do a part of its work, the announcers, ask on another socket, and tell there how it
// goes: "tell" brings rows of a table, as many as fit a message, and says whether more follow.
package localapi

import (
	"encoding/json"
	"errors"
	"net/netip"
	"time"
)

// Node describes a node, apart from its tables. Fields that the agent does not know before the cluster's first snapshot
// are zero until then.
type Node struct {
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	PublicKey string    `json:"publicKey,omitempty"` // WireGuard's
	// Restarts is how often the agent was started again in its container. LastEnd says how the run before this one
	// ended, and LastEnded when; they are empty in the first run.
	Restarts  int       `json:"restarts,omitempty"`
	LastEnd   string    `json:"lastEnd,omitempty"`
	LastEnded time.Time `json:"lastEnded,omitzero"`
	// Missing lists, as sentences, what keeps the node from being ready; it is empty when the node is ready.
	Missing []string `json:"missing,omitempty"`
	// Source says where the cluster's objects come from. Updated is when the last of them came into force.
	Source  string    `json:"source"`
	Updated time.Time `json:"updated,omitzero"`
	// APIServer is the URL of the API server that answered last; "" without one.
	APIServer string `json:"apiServer,omitempty"`
	// HostTAP is set when the node has a host TAP, whose creation needs NET_ADMIN once. (Its JSON name is from earlier
	// versions.)
	HostTAP bool `json:"hostPort"`
	// HostProxy is where processes of the node find the host proxy; "" without one.
	HostProxy string `json:"hostProxy,omitempty"`
	// LoadBalancers says how clients outside reach load balancers by this node.
	LoadBalancers LoadBalancers `json:"loadBalancers,omitzero"`
	// Addresses lists the node's addresses on the underlay, PodCIDRs its pod ranges. MTU is the pods' MTU in bytes.
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	// Descriptors says how many open files the agent may have; what each part of it may have is in a table.
	Descriptors Descriptors `json:"descriptors,omitzero"`
	// DNS lists the addresses on which cluster DNS answers.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// LoadBalancers says how clients outside reach load balancers by a node. Ranges are those that the node routes into its
// host TAP. Announcers are those that work beside the agent, sorted: "bgp", "l2". They say in which way the network
// hears of addresses, and only that of ARP and NDP makes another tier.
type LoadBalancers struct {
	Tier       Tier           `json:"tier"`
	Ranges     []netip.Prefix `json:"ranges,omitempty"`
	Announcers []string       `json:"announcers,omitempty"`
}

// Tier is what a node has for load balancers (docs/loadbalancer.md).
type Tier string

// The tiers.
const (
	HostSockets Tier = "host-sockets" // addresses of nodes, on host sockets
	HostTAP     Tier = "host-tap"     // addresses that the node's kernel routes into the host TAP
	Announced   Tier = "announced"    // the same, in the node's own network, where its announcer answers by ARP and NDP
)

// Descriptors are the open files of the agent. Useful is the Limit from which on a busy node lacks nothing.
type Descriptors struct {
	Limit  int `json:"limit"`
	InUse  int `json:"inUse"`
	Useful int `json:"useful"`
}

// DefaultSocket is the path of the socket of an agent in a cluster.
const DefaultSocket = "/run/tapestry/api.sock"

// AnnounceSocket is the path of the socket for announcers of an agent in a cluster. It is in a directory of its own, so
// that announcers see no other socket of the node.
const AnnounceSocket = "/run/tapestry/announce/agent.sock"

// ErrUnavailable says that the agent cannot be reached at the moment. Only the Client returns it.
var ErrUnavailable = errors.New("the agent of this node cannot be reached")

// The requests.
const (
	opNode  = "node"
	opRows  = "rows"
	opMore  = "more"
	opTell  = "tell"
	opFlows = "flows"
)

type request struct {
	Op    string `json:"op"`
	Table string `json:"table,omitempty"`
	// Args are of "rows", for a table that answers a question.
	Args []string `json:"args,omitempty"`
	// Rows and More are of "tell".
	Rows []json.RawMessage `json:"rows,omitempty"`
	More bool              `json:"more,omitempty"`
	// Flows is of "flows".
	Flows *FlowQuery `json:"flows,omitempty"`
}

type answer struct {
	Error string            `json:"error,omitempty"`
	Node  *Node             `json:"node,omitempty"`
	Rows  []json.RawMessage `json:"rows,omitempty"`
	// More is set when further rows can be asked for.
	More bool `json:"more,omitempty"`
	// Lost is of "flows": how many events were left out so far.
	Lost uint64 `json:"lost,omitempty"`
}
