// Package advertise decides, from a snapshot of the cluster, what is announced to the network outside: which addresses
// of AddressPools, by which nodes, and to which routers. It is a pure function of the objects; package announce says
// what happens with the result.
//
// An address is announced only where an L2Advertisement or a BGPAdvertisement says so. Only addresses in AddressPools
// are, whatever a Service's status says, so that who may write Services announces nothing that is another's. Those of
// pools of nodes are the nodes' own, and need no announcement.
//
// What of an object cannot be used is left out, told once, and the rest of it stays in force.
//
// # What a change costs
//
// What nodes, pools and advertisements say is read once (rules), and what follows for an address of a load balancer is
// kept with it. When a load balancer changes, its addresses are decided anew, and the prefixes in which routers are
// told of them. A prefix is made of all its addresses, so that one of a /16 costs more than one of a /32. When anything
// else changes, all is decided anew, but nodes are ranked only for the addresses that have other nodes than before.
package advertise
