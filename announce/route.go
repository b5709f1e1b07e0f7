package announce

import "net/netip"

// Peer is a router with which a node has a BGP session.
type Peer struct {
	Name    string         `json:"name"` // of the BGPPeer
	Address netip.AddrPort `json:"address"`
	Source  netip.Addr     `json:"source,omitzero"` // zero: the kernel chooses
	ASN     uint32         `json:"asn"`
	MyASN   uint32         `json:"myASN"`
	// Multihop is how many hops the router may be away; 0: it is on the link.
	Multihop uint8 `json:"multihop,omitempty"`
	// PasswordKey names the file with the password; "" without one.
	PasswordKey string `json:"passwordKey,omitempty"`
	// HoldTime and GracefulRestart are in seconds; GracefulRestart is 0 without it.
	HoldTime        uint16 `json:"holdTime"`
	GracefulRestart uint16 `json:"gracefulRestart,omitempty"`
	// BFD is zero without it.
	BFD BFD `json:"bfd,omitzero"`
}

// BFD says how fast it is noticed that a router and this node do not reach one another (RFC 5880).
type BFD struct {
	// Transmit and Receive are the shortest times in milliseconds between two packets: of those that this node sends,
	// and of those that it is ready for. The router has such times, too, and of two the longer one counts.
	Transmit uint16 `json:"transmit"`
	Receive  uint16 `json:"receive"`
	// Multiplier is after how many such times without a packet the router takes this node for lost. It says of itself
	// after how many it wants to be taken for lost.
	Multiplier uint8 `json:"multiplier"`
}

// Route is what a node tells one router of a prefix.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Peer   string       `json:"peer"`
	// Services are those with an address in the prefix, "namespace/name".
	Services []string `json:"services"`
	// Communities are written "65000:1", large ones "65000:1:2".
	Communities []string `json:"communities,omitempty"`
	// LocalPref is for routers of the same ASN; nil: not said.
	LocalPref *uint32 `json:"localPref,omitempty"`
}

// Equal reports whether two Routes say the same.
func (r Route) Equal(o Route) bool {
	return r.Prefix == o.Prefix && r.Peer == o.Peer && alike(r.Services, o.Services) && alike(r.Communities, o.Communities) &&
		(r.LocalPref == o.LocalPref || r.LocalPref != nil && o.LocalPref != nil && *r.LocalPref == *o.LocalPref)
}
