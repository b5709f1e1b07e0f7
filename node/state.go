package node

import (
	"time"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
)

// Table returns the frontends and backends that are in force.
func (n *Node) Table() *services.Table { return n.table.Load() }

// WireGuardPort returns the UDP port on which the tunnel listens.
func (n *Node) WireGuardPort() uint16 { return n.mesh.Port() }

// Peers returns the state of the tunnel to each other node.
func (n *Node) Peers() []overlay.PeerStatus { return n.mesh.Status() }

// Attachments are what is attached to the packet path, with what went through them.
func (n *Node) Attachments() []netstack.AttachmentStats { return n.path.Attachments() }

// Packets returns packet counts by verdict, and drops by reason.
func (n *Node) Packets() netstack.Stats { return n.path.Stats() }

// AnswerBeats has this node answer other nodes' questions whether it can take over addresses, until then.
func (n *Node) AnswerBeats(until time.Time) { n.mesh.AnswerBeats(until) }

// PassOver has the nodes of these names be told that they are passed over, and no others, as overlay.Mesh does.
func (n *Node) PassOver(nodes map[string]bool) { n.mesh.PassOver(nodes) }

// Askers returns the nodes that have asked since a time, each with whether it passes this one over; nil when none does.
func (n *Node) Askers(since time.Time) map[string]bool { return n.mesh.Askers(since) }

// Beats returns when the other nodes that overlay.Peer.Watched names have answered.
func (n *Node) Beats() []overlay.Beat { return n.mesh.Beats() }
