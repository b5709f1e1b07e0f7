// Package bfd tells within a second that a router is not reached any longer, by BFD (RFC 5880) on the node's own link
// (RFC 5881). The state machine and the sockets are GoBGP's.
//
// # One server for all routers
//
// All sessions of a node take their packets at one port, which GoBGP has open once for each of its servers, and the
// kernel gives each packet to one socket. So there is one server for BFD alone. It knows all routers, as BGP neighbours
// that are shut and never have a session of BGP. The sessions of BGP are those of other servers (package bgp), which
// are told here that a router is lost.
//
// # What counts
//
// A router is lost when its session was up and is not any longer: nothing came in time, or it said so. A session that
// was never up says nothing, since there are routers without BFD, and since BGP has to be there first with those that
// begin BFD only then (RFC 5882, section 4.1; FRR and BIRD do the same). That is told and changes nothing else.
//
// GoBGP says how its sessions are, and not that they change, so they are looked at often. A session that was down and
// up again between two looks is not seen. That takes packets both ways and a router that was down itself, which has
// ended its session of BGP by then.
package bfd
