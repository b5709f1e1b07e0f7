package node

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/audit"
)

// makePolicy counts what policies find. The packet path gets them with everything else that it is told.
func makePolicy(n *Node) (part, error) {
	p := quiet
	p.counters = func() counter.List {
		found := n.findings.Totals()
		return counter.List{counter.By(counter.Total, "tapestry_policy_staged_total",
			"Flows that would fare otherwise if staged policies were in force: new ones that would be permitted (permit) or denied (deny), and "+
				"ones that stand and would be cut (cut), each time they were judged again.", "would",
			map[string]uint64{"permit": found.WouldPermit, "deny": found.WouldDeny, "cut": found.WouldCut})}
	}
	return p, nil
}

// judge returns what judges flows; nil where everything is permitted.
func (n *Node) judge() netstack.Policy {
	if t := n.policy.Load(); t != nil {
		return judge{t}
	}
	return nil
}

// Policies returns what judges flows, nil where there are no policies, and what staged ones find.
func (n *Node) Policies() (*audit.Tables, *audit.Findings) { return n.policy.Load(), n.findings }

// judge is Tables as the packet path asks them. It is compared by the Tables.
type judge struct{ *audit.Tables }

var _ netstack.Policy = judge{}

// Judge implements netstack.Policy.
func (j judge) Judge(f *netstack.Flow) netstack.Ruling {
	r := j.Tables.Judge(&policy.Flow{
		Src: f.Orig.Src, Dst: f.To.Dst, Proto: f.Orig.Proto, Port: f.To.DstPort, From: endOf(&f.From), Toward: endOf(&f.Toward),
		// What is steered from here to a third node, for instance, has this node's address there.
		Both: f.To.Src != f.Orig.Src,
		// What comes by a hostPort was judged as what goes to this node.
		Steered: f.Backend != 0 && f.From.Kind == netstack.OtherNode && !j.IsNode(f.Orig.Dst),
	}, audit.Asked{Begins: f.Begins})
	switch r.Verdict {
	case policy.Permit:
		return netstack.Ruling{Rule: r.Rule}
	case policy.Unknown:
		return netstack.Ruling{Action: netstack.Drop} // the sender tries again
	case policy.Drop:
		return netstack.Ruling{Action: netstack.Drop, Rule: r.Rule}
	}
	return netstack.Ruling{Action: netstack.Refuse, Rule: r.Rule}
}

// EndAt returns how policies know who has an address.
func (n *Node) EndAt(a netip.Addr) policy.End {
	e := n.path.At(a)
	return endOf(&e)
}

// endOf returns how policies know an end.
func endOf(e *netstack.End) policy.End {
	switch e.Kind {
	case netstack.Pod:
		return policy.End{Kind: policy.OwnPod, Name: e.Attachment, UID: e.UID}
	case netstack.Host:
		return policy.End{Kind: policy.OwnNode}
	case netstack.Stack:
		return policy.End{Kind: policy.OwnAgent}
	case netstack.OtherNode, netstack.Nobody:
		return policy.End{Kind: policy.InCluster}
	}
	return policy.End{}
}

// asks reports whether Ingress may ask who makes connections to an address and port. Its listeners do not say: one that
// the host keeps has clients before Ingress is served again.
func (n *Node) asks(to packet.Endpoint) bool {
	ports := n.held.IngressPorts
	return (ports == nil || slices.Contains(ports, to.Port)) && isOwn(&n.Config().Netstack, *n.hostAddrs.Load(), to.Addr.Netip())
}

// who returns who has made a connection to Ingress, which has read something of it: without a host TAP, the pods' come
// from host sockets.
func (n *Node) who(client, at netip.AddrPort) netip.Addr {
	if pod, ok := n.path.Stack().Behind(client, at); ok {
		return pod
	}
	return client.Addr()
}

// lawOfIngress returns what policies say to Ingress, nil where everything is permitted. Ingress judges its clients,
// since endpoints do not see them.
func (n *Node) lawOfIngress() ingress.Law {
	if t := n.policy.Load(); t != nil {
		return ingressLaw{t, n}
	}
	return nil
}

// ingressLaw is Tables as Ingress asks them, over TCP. It is compared by the Tables.
type ingressLaw struct {
	tables *audit.Tables
	node   *Node
}

// For implements ingress.Law.
func (l ingressLaw) For(client netip.Addr) ingress.Judge {
	from := l.node.path.At(client)
	if client.IsLoopback() {
		from = netstack.End{Kind: netstack.Host}
	}
	if from.Kind == netstack.Host { // whichever of its addresses it speaks from
		if own := nodeAddr(&l.node.Config().Netstack, client); own.IsValid() {
			client = own
		}
	}
	return ingressLawFor{l.tables, l.node.path, packet.AddrFrom(client), endOf(&from)}
}

// ingressLawFor is an ingressLaw for one client. Who has an endpoint's address can change under the same Tables, as
// when a pod is attached. What was forbidden before may stay so until the next Tables, which come with the pod's
// status.
type ingressLawFor struct {
	tables *audit.Tables
	path   *netstack.Path
	client packet.Addr
	from   policy.End
}

// Permits implements ingress.Judge.
func (l ingressLawFor) Permits(endpoint netip.AddrPort) ingress.Permission {
	toward := l.path.At(endpoint.Addr())
	switch l.tables.Judge(&policy.Flow{
		Src: l.client, Dst: packet.AddrFrom(endpoint.Addr()), Proto: packet.TCP, Port: endpoint.Port(),
		From: l.from, Toward: endOf(&toward), Both: true,
	}, audit.Asked{Begins: true, Ingress: true}).Verdict {
	case policy.Permit:
		return ingress.Permitted
	case policy.Unknown:
		return ingress.Undecided
	}
	return ingress.Forbidden
}
