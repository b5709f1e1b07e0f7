// Package bgp announces addresses by BGP (RFC 4271): it has a session with each router that the agent names, and tells
// it the prefixes that the agent says. It uses nothing that routers tell, and ends the session with one that tells
// much.
//
// # A speaker for each router
//
// Each session has a BGP speaker of its own (a GoBGP server with one neighbour and no listener), with the routes for
// that router and no others. So a router that resets, flaps or sends garbage ends its own session, and no policy has to
// keep apart what is told to whom. A speaker dials out, and is made anew when what its BGPPeer says, or its password,
// has changed. Other changes add and withdraw routes.
//
// A session that ends is begun anew after a pause, in which the speaker keeps its routes, and all of them are told
// again. Who only looked now and then would not see sessions that last a moment, so the speaker is told of each
// (flaps).
//
// # BFD
//
// A session with a router that package bfd says is lost is ended at once, by this side too, and begun anew after the
// pause. That the router has lost this node is the router's to notice.
//
// # Next hops
//
// The next hop of a route is the node: the address that the session comes from, or, for the other family, the node's
// address of that family.
package bgp
