package node

import (
	"fmt"
	"time"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services/affinity"
)

// Counters returns the counters of all parts.
func (n *Node) Counters() counter.List {
	var list counter.List
	for _, p := range n.parts {
		list = append(list, p.counters()...)
	}
	return list
}

func (n *Node) countServices() counter.List {
	t := n.table.Load()
	endpoints := 0
	for _, s := range t.Services().All() {
		endpoints += s.Len()
	}
	return counter.List{
		counter.One(counter.Gauge, "tapestry_services", "Services that lead somewhere, headless ones and names of others (ExternalName) among them.",
			len(n.Config().DNS.Services)),
		counter.One(counter.Gauge, "tapestry_endpoints", "Endpoints of these Services, ready or not.", endpoints),
		counter.One(counter.Gauge, "tapestry_node_ports", "NodePorts of these Services.", len(t.NodePorts())),
		counter.One(counter.Gauge, "tapestry_host_ports", "hostPorts of this node's pods.", len(t.HostPorts())),
	}
}

func countAffinity(s affinity.Stats) counter.List {
	return counter.List{
		counter.One(counter.Gauge, "tapestry_affinity_sessions", "Clients of Service ports with session affinity whose backend is remembered.", s.Sessions),
		counter.By(counter.Total, "tapestry_affinity_lost_total",
			"Such clients forgotten before their time, for others' or the same owner's sake (replaced); or not remembered, as there was no room (refused).",
			"why", map[string]uint64{"replaced": s.Replaced, "refused": s.Refused}),
	}
}

// rejectTime is how long a WireGuard session is used without a new handshake (WireGuard paper, 6.1: Reject-After-Time).
const rejectTime = 180 * time.Second

// peerState returns the state of the tunnel to another node: up, quiet or keyless.
func peerState(p *overlay.PeerStatus) string {
	switch {
	case p.PublicKey.IsZero():
		return "keyless"
	case p.HandshakeAge >= 0 && p.HandshakeAge < rejectTime:
		return "up"
	}
	return "quiet"
}

func (n *Node) countMesh() counter.List {
	peers := map[string]int{"up": 0, "quiet": 0, "keyless": 0}
	for _, p := range n.mesh.Status() {
		peers[peerState(&p)]++
	}
	s := n.mesh.Stats()
	return counter.List{
		counter.By(counter.Gauge, "tapestry_peers",
			"Other nodes: up (a handshake within three minutes), quiet (none: nothing was sent, or nobody answers), or keyless.", "state", peers),
		counter.By(counter.Total, "tapestry_link_total", "Packets and datagrams of the tunnel: sent, received, or why not.", "event", map[string]uint64{
			"sent": s.SentPackets, "sent-partial": s.SentPartial, "cut": s.CutPackets, "received": s.ReceivedPackets, "no-peer": s.DropNoPeer, "no-session": s.DropNoSession,
			"too-big": s.DropTooBig, "spoofed": s.DropSpoofed, "forbidden": s.DropForbidden, "send-errors": s.SendErrors,
			"handshakes": s.DropHandshakes, "handshakes-asked": s.AskedProof,
		}),
		counter.By(counter.Total, "tapestry_link_bytes_total", "Bytes of these packets: sent, received.", "event", map[string]uint64{
			"sent": s.SentBytes, "received": s.ReceivedBytes,
		}),
	}
}

func (n *Node) countPath() counter.List {
	packets := n.path.Stats()
	flows, taps := map[string]int{}, map[string]int{}
	n.held.Flows.Range(func(_ *flow.Entry, i flow.Info) bool {
		flows[i.State.String()]++
		return true
	})
	for _, p := range n.path.Attachments() {
		taps[p.Offloads]++
	}
	table := n.held.Flows.Stats()
	return counter.List{
		counter.By(counter.Total, "tapestry_packets_total", "Packets by what was done with them; a superframe counts as one.", "verdict", packets.Verdicts),
		counter.By(counter.Total, "tapestry_drops_total", "Packets dropped, by reason.", "reason", packets.Drops),
		counter.By(counter.Gauge, "tapestry_flows", "Tracked flows by state.", "state", flows),
		counter.One(counter.Gauge, "tapestry_flows_capacity", "Flows that can be tracked at most.", table.Capacity),
		counter.One(counter.Total, "tapestry_flows_full_total", "Flows that found no room.", table.Full),
		counter.One(counter.Total, "tapestry_flows_no_port_total", "Flows for whose answers there was no free port.", table.NoPort),
		counter.By(counter.Total, "tapestry_flows_freed_total",
			"Flows freed: expired in time; or before it, idle ones of an owner with more than its share (pressed), to make room for another "+
				"owner (from-most) or for the same one (from-own), for room in the index (crowded), or for its port (for-port).", "why",
			map[string]uint64{
				"expired": table.Expired, "pressed": table.Evicted.Pressed, "from-most": table.Evicted.FromMost,
				"from-own": table.Evicted.FromOwn, "crowded": table.Evicted.Crowded, "for-port": table.Evicted.ForPort,
			}),
		counter.One(counter.Gauge, "tapestry_flow_owners", "Pods, nodes and others who began the tracked flows.", table.Owners),
		counter.One(counter.Gauge, "tapestry_flows_most", "Flows of the owner who has the most.", table.Most),
		counter.By(counter.Gauge, "tapestry_taps", "TAPs by the offloads in use.", "offloads", taps),
	}
}

func (n *Node) countNodePorts() counter.List {
	s := n.nodePorts.Stats()
	sessions, conns := n.nodePorts.Shares()
	return counter.List{
		counter.One(counter.Gauge, "tapestry_host_port_sockets", "Sockets that listen for NodePorts and hostPorts.", s.Sockets),
		counter.By(counter.Gauge, "tapestry_host_port_conversations", "Open ends of TCP connections, and UDP conversations, through them.", "protocol",
			map[string]int64{"tcp": s.Conns, "udp": s.Sessions}),
		counter.By(counter.Gauge, "tapestry_host_port_most",
			"How many connections that pods of this node do not have themselves (tcp), and UDP conversations (udp), the client has that has the most.",
			"protocol", map[string]int{"tcp": conns.Most, "udp": sessions.Most}),
		counter.By(counter.Total, "tapestry_host_port_lost_total",
			"Connections refused (tcp), and UDP conversations ended before their time (udp), as their client had its share.",
			"protocol", map[string]uint64{"tcp": conns.Refused, "udp": sessions.TakenFromMost + sessions.TakenFromOwn + sessions.Refused}),
	}
}

func (n *Node) countIngress() counter.List {
	s := n.ingress.Stats()
	classes := map[string]uint64{}
	for i, count := range s.Responses {
		if i > 0 {
			classes[fmt.Sprint(i, "xx")] = count
		}
	}
	return counter.List{
		counter.One(counter.Total, "tapestry_ingress_requests_total", "Requests to Ingress.", s.Requests),
		counter.One(counter.Gauge, "tapestry_ingress_in_flight", "Requests and upgraded connections through Ingress at the moment.", s.InFlight),
		counter.By(counter.Total, "tapestry_ingress_responses_total", "Responses that came from backends of Ingress, by class of their status.", "class", classes),
		counter.By(counter.Total, "tapestry_ingress_failures_total", "Requests to Ingress that got no response of a backend, by reason.", "reason", map[string]uint64{
			"bad-request": s.BadRequest, "no-route": s.NoRoute, "looped": s.Looped, "no-endpoint": s.NoEndpoint, "forbidden": s.Forbidden, "bad-gateway": s.BadGateway,
			"timeout": s.Timeout, "client-gone": s.ClientGone, "client-broke": s.ClientBroke,
		}),
		counter.One(counter.Total, "tapestry_ingress_broken_total",
			"Responses of backends that did not reach the client whole: one of both broke off, or the client took nothing for too long.", s.Broken),
		counter.One(counter.Gauge, "tapestry_ingress_connections", "Connections of clients to Ingress.", s.Conns),
		counter.By(counter.Total, "tapestry_ingress_ended_total",
			"Connections (evicted) and requests (shed) of the client with the most, ended for those of others; connections and requests for which "+
				"there was no place (refused), and connections whose requests were taken back at once (flooded).", "why",
			map[string]uint64{"evicted": s.Evicted, "shed": s.Shed, "refused": s.Refused, "flooded": s.Flooded}),
		counter.One(counter.Total, "tapestry_ingress_waited_total", "Connections to Ingress that waited before they were read, since their client had many.", s.Waited),
		counter.One(counter.Total, "tapestry_ingress_retries_total", "Requests passed on to another endpoint, since the first could not be connected to.", s.Retries),
		counter.One(counter.Total, "tapestry_ingress_fallback_tls_total", "TLS handshakes for which there was no certificate but the self-signed one.", s.FallbackTLS),
	}
}
