package cni

import (
	"net/netip"
	"time"
)

// Detail is what there is to tell people about a node, beside Status and Stats. Ages are in nanoseconds, negative for never.
type Detail struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Missing are sentences that say what keeps the node from being ready; none when it is.
	Missing []string `json:"missing,omitempty"`
	// Source is where the cluster's objects come from, Updated when the last of them were in force.
	Source  string    `json:"source"`
	Updated time.Time `json:"updated,omitzero"`
	// APIServer is the URL of the API server that answered last; "" without one.
	APIServer string `json:"apiServer,omitempty"`
	// Privileges the node was given: the host Port (made once with NET_ADMIN), and announcements on the link (NET_RAW).
	HostPort      bool `json:"hostPort"`
	Announcements bool `json:"announcements"`
	// Addresses are the node's on the underlay, PodCIDRs its pods'; MTU is the pods'.
	Addresses []netip.Addr   `json:"addresses,omitempty"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	// DNS are the addresses on which cluster DNS answers.
	DNS []netip.Addr `json:"dns,omitempty"`
	// What the Table of Services holds.
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
	NodePorts int `json:"nodePorts"`
	HostPorts int `json:"hostPorts"`

	Peers []PeerDetail `json:"peers,omitempty"`
	Pods  []PodDetail  `json:"pods,omitempty"`
}

// PeerDetail is another node, as the tunnel sees it.
type PeerDetail struct {
	Name      string         `json:"name"`
	PublicKey string         `json:"publicKey,omitempty"` // "" when it has announced none
	Endpoint  netip.AddrPort `json:"endpoint,omitzero"`   // where it was heard last; zero when never
	// HandshakeAge is the time since the last handshake, AnswerAge since a probe through the tunnel came back.
	HandshakeAge time.Duration `json:"handshakeAge"`
	AnswerAge    time.Duration `json:"answerAge"`
	Received     uint64        `json:"receivedBytes"`
	Sent         uint64        `json:"sentBytes"`
	MTU          int           `json:"mtu"` // the largest packet inside of the tunnel, in bytes
}

// PodDetail is a pod of this node, or the host, as a port of the switch.
type PodDetail struct {
	Name  string       `json:"name"` // "namespace/name", or "host"
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// What the pod sent and was sent, and what its TAP did not take.
	FromPackets uint64 `json:"fromPackets"`
	FromBytes   uint64 `json:"fromBytes"`
	ToPackets   uint64 `json:"toPackets"`
	ToBytes     uint64 `json:"toBytes"`
	Lost        uint64 `json:"lost,omitempty"`
	Offloads    string `json:"offloads,omitempty"`
}
