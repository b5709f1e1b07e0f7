// Package announce decides which addresses of load balancers a node announces to the network outside. It is a leaf:
// agents tell by it what is to be announced, and the announcers (announce/link for ARP and NDP, announce/bgp), which
// are processes of their own and need no right in the cluster, do it.
//
// # What is announced by whom
//
// A node is eligible for an address when it can serve all of the address's Services: when it runs an agent, is not
// excluded from load balancers (KEP-1143), and, if a Service's external traffic policy is Local, has a ready endpoint
// of it, or, where no node has, one that terminates and still serves. A node that is leaving (cordoned, about to be
// removed) announces only what no other node could.
//
// By BGP every eligible node announces an address that has an endpoint at all. By ARP and NDP one of them does. All
// nodes order the eligible nodes of an address in the same way, by rendezvous hashing, so that nobody has to agree with
// anybody and a node that comes or goes moves its own addresses alone. The first of them that answers is the announcer.
//
// # Who answers
//
// Agents ask each other several times a second, inside the tunnel, whether they could announce (overlay.Beat). An agent
// says so while the announcer of its node asks it what to announce. So a node counts as long as all of it works: its
// network, its agent, its announcer. A node asks those alone that come before it among the first few of an address, and
// there are only so many orders of the nodes (Rank), so that the beats of a cluster grow neither with the addresses nor
// with the square of the nodes. Of others it believes what Kubernetes says.
//
// Times: beats go every overlay.BeatEvery. A node that has not answered for Patience is passed over. An announcer whose
// agent is away goes on for Patience, and an agent that was just started takes every node for one that answers for as
// long, so that a restart moves nothing. A node that comes and goes gets addresses of load balancers again when it has
// answered steadily (Record); its next one tells it so. Nothing delays that a node which does not answer is passed
// over.
package announce
