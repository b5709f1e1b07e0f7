package node

import (
	"fmt"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/services"
)

// resume goes on with what the Node before relayed. Further calls find nothing.
func (n *Node) resume() {
	if r, ports := n.path.Resume(); r != (tcprelay.Resumed{}) || ports > 0 {
		n.log.Info("found the relayed connections of the agent before", "resumed", r.Resumed, "lost", r.Lost, "UDP ports", ports)
	}
}

// cutRelays returns a problem when relayed connections end with this Node.
func (n *Node) cutRelays() []Problem {
	if n.held.Cut == nil {
		return nil
	}
	return []Problem{{Warning: true, Problem: services.Problem{
		Object:  "Node " + n.Config().Netstack.Node,
		Message: fmt.Sprintf("connections of its pods to the outside and through NodePorts end when its agent does: %v", n.held.Cut),
	}}}
}

// unroutable returns a problem for each range that pods are to reach from their own addresses, and cannot without a
// host TAP of its family.
func (n *Node) unroutable() (list []Problem) {
	for _, r := range n.held.Routed {
		if !n.HasHostTAP(r.Addr()) {
			list = append(list, Problem{Problem: services.Problem{Object: "Node " + n.Config().Netstack.Node, Message: fmt.Sprintf(
				"its pods do not reach %s, which they are to reach from their own addresses (--non-masquerade-cidr), without a host TAP with an address of that family: run 'tapestry host-tap' there, or leave the range out", r)}})
		}
	}
	return list
}

// countOutside counts the host sockets and memory that pods and outside clients use. All of these are shared out among
// them.
func (n *Node) countOutside() counter.List {
	s := n.path.Stack().Stats()
	udp, ports, pings, dials, pieces := s.UDP.Conversations, s.UDP.Sockets, s.Pings, s.Dials, s.Pieces
	return counter.List{
		counter.By(counter.Gauge, "tapestry_outside",
			"Through host sockets: TCP connections with pods of this node (tcp) and of others (dialled), UDP conversations (udp) and the ports of "+
				"pods that have them (ports), pings, and packets of which not all fragments have come (pieces).", "what", map[string]int{
				"tcp": s.TCP.Conns, "dialled": dials.Held, "udp": udp.Held, "ports": ports.Held, "pings": pings.Held, "pieces": pieces.Held,
			}),
		counter.By(counter.Gauge, "tapestry_outside_most", "How many of these the pod, or the client's network, has that has the most.", "what",
			map[string]int{
				"tcp": s.TCP.Most, "dialled": dials.Most, "udp": udp.Most, "ports": ports.Most, "pings": pings.Most, "pieces": pieces.Most,
			}),
		counter.By(counter.Total, "tapestry_outside_refused_total", "How often there was none of these to be had, or no port of the host towards a server (host-ports).", "what", map[string]uint64{
			"tcp": s.TCP.Refused, "dialled": dials.Refused, "udp": udp.Refused, "ports": ports.Refused, "pings": pings.Refused, "pieces": pieces.Refused,
			"host-ports": s.TCP.NoPort,
		}),
		counter.By(counter.Total, "tapestry_outside_ended_total",
			"How many of these were ended before their time, for one that the same pod began, as it had its share.", "what", map[string]uint64{
				"udp": udp.TakenFromOwn, "ports": ports.TakenFromOwn, "pings": pings.TakenFromOwn, "pieces": pieces.TakenFromOwn,
			}),
		counter.By(counter.Total, "tapestry_outside_taken_total", "How many of these were taken from whoever had the most, for somebody with less.",
			"what", map[string]uint64{
				"udp": udp.TakenFromMost, "ports": ports.TakenFromMost, "pings": pings.TakenFromMost, "pieces": pieces.TakenFromMost,
			}),
		counter.One(counter.Gauge, "tapestry_outside_kept_bytes", "Bytes of TCP streams that wait for somebody to take them.", s.TCP.Bytes),
		counter.One(counter.Gauge, "tapestry_outside_lasting", "TCP connections through host sockets that go on when the agent ends.", s.TCP.Held),
		counter.One(counter.Total, "tapestry_outside_strange_total", "Datagrams for a pod's port from somebody whom it has not sent to.", s.UDP.Strange),
		counter.One(counter.Total, "tapestry_outside_lost_total",
			"Messages of pods for UDP clients of NodePorts, of one datagram or several, that the host's socket had no room for, or the host no way.", s.Lost),
	}
}
