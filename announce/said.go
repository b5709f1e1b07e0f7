package announce

import (
	"net/netip"
	"time"
)

// State changes whenever what is to be announced does, or the node's addresses do.
type State struct {
	// Generation is another number whenever something else is to be announced.
	Generation uint64 `json:"generation"`
	// NodeAddrs are the node's own addresses.
	NodeAddrs []netip.Addr `json:"nodeAddrs,omitempty"`
}

// Claim is what an announcer of ARP and NDP does about an address.
type Claim struct {
	Addr      netip.Addr `json:"addr"`
	Interface string     `json:"interface"`
	State     ClaimState `json:"state"`
	Since     time.Time  `json:"since"`
	Services  []string   `json:"services,omitempty"`
	// Problem says what is wrong, as a sentence; "" when nothing is.
	Problem string `json:"problem,omitempty"`
}

// ClaimState is what an announcer does.
type ClaimState string

// The states of a Claim.
const (
	Waiting   ClaimState = "waiting"   // it asks whether somebody has the address before it announces it
	Announced ClaimState = "announced" // it answers for the address
	Conflict  ClaimState = "conflict"  // somebody else answers for the address, and is left alone
	Failed    ClaimState = "failed"    // it cannot announce the address
)

// Session is a BGP session, as the announcer sees it.
type Session struct {
	Peer    string         `json:"peer"`
	Address netip.AddrPort `json:"address"`
	ASN     uint32         `json:"asn"`
	State   string         `json:"state"` // as RFC 4271, section 8.2.2, names it, in lower case
	// BFD is "down", "init" or "up", as RFC 5880, section 6.2, has them; "" without BFD.
	BFD   string    `json:"bfd,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Routes is how many the router was told, Received how many it told.
	Routes   int `json:"routes"`
	Received int `json:"received"`
	// Ups is how often the session was established.
	Ups uint64 `json:"ups"`
	// Problem says what is wrong, as a sentence; "" when nothing is.
	Problem string `json:"problem,omitempty"`
}
