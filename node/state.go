package node

import (
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
)

// Table is what is in force of Services.
func (n *Node) Table() *services.Table { return n.table.Load() }

// WireGuardPort is the UDP port that the tunnel listens on.
func (n *Node) WireGuardPort() uint16 { return n.mesh.Port() }

// Peers are the other nodes, as the tunnel sees them.
func (n *Node) Peers() []overlay.PeerStatus { return n.mesh.Status() }

// Attachments are what is attached to the packet path, with what went through them.
func (n *Node) Attachments() []netstack.AttachmentStats { return n.path.Attachments() }

// Packets counts by verdict and by reason of a drop.
func (n *Node) Packets() netstack.Stats { return n.path.Stats() }
