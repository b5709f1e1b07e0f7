package policy

import (
	"cmp"
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// Config is what a Table is compiled from. What it points to never changes: whatever has changed is another pointer.
type Config struct {
	// Policies are sorted by namespace and name.
	Policies []*Policy
	// Cluster are the policies of the cluster, in any order.
	Cluster []*tiers.Policy
	// Namespaces are sorted by name. One that is not among them has only the label that every namespace has.
	Namespaces []*Namespace
	// Own are the pods of this node, and what the node itself does in place of pods, sorted by namespace and name.
	Own []*Pod
	// Others are the pods of other nodes, sorted by namespace and name.
	Others roll.List[*Pod]
	// Nodes are all nodes, in any order.
	Nodes []Node
}

// Node is a node as the other end of flows.
type Node struct {
	Name string
	// Pods are the ranges of its pods.
	Pods []netip.Prefix
	// Addrs are its own addresses, the first of each family the one as which ranges see it.
	Addrs []netip.Addr
	// Host are the addresses of its host TAP, from which its processes speak.
	Host []netip.Addr
	// Agent are its stack's addresses, from which its agent speaks, for clients that it has judged.
	Agent []netip.Addr
	// Labels are those by which policies of the cluster select it, at its Addrs and Host.
	Labels law.Labels
}

// Namespace is a namespace and its labels.
type Namespace struct {
	Name   string
	Labels law.Labels
}

// Pod is a pod as policies see it.
type Pod struct {
	Namespace, Name string
	// UID tells the pod from others that have its name before or after it; "" if it is not known.
	UID string
	// Node is the node where it is: addresses outside of that node's ranges are not believed. It is "" for what a node
	// does in place of pods, which may have any.
	Node   string
	Labels law.Labels
	// Addrs are its own addresses; none for a pod that uses the network of its node.
	Addrs []netip.Addr
	// Ports are its ports that have names.
	Ports []law.NamedPort
	// Vague is set when not all of its labels are known. Nothing is known of such a pod.
	Vague bool
}

func (p *Pod) compare(q *Pod) int {
	return cmp.Or(cmp.Compare(p.Namespace, q.Namespace), cmp.Compare(p.Name, q.Name))
}

// Policy is a NetworkPolicy. It selects pods of its namespace, for the directions in which Isolates is set.
type Policy struct {
	Namespace, Name string
	Pods            law.Selector
	Egress, Ingress Rules
	// Staged is set when the policy is only watched; see package audit.
	Staged bool
}

// Rules are what a Policy permits in one direction.
type Rules struct {
	// Isolates is set when the pods may do nothing else in this direction than rules permit.
	Isolates bool
	List     []law.Rule
}

// EndKind says how an end of a flow is known.
type EndKind uint8

// The kinds of ends.
const (
	ByAddress EndKind = iota // whoever has the address
	OwnPod                   // a pod of this node, by its name
	OwnNode                  // processes of this node
	OwnAgent                 // this node's stack
	InCluster                // whoever has the address, which is one of pods' or of a node's
)

// End is an end of a flow.
type End struct {
	Kind EndKind
	Name string // of OwnPod: "namespace/name"
	UID  string // of OwnPod, if it is known
}

// byAddress reports whether the end is known by its address alone.
func (e *End) byAddress() bool { return e.Kind == ByAddress || e.Kind == InCluster }

// Flow is what is judged: From begins a flow to a port of Toward. Port means something for TCP, UDP and SCTP alone.
type Flow struct {
	Src, Dst     packet.Addr
	Proto        packet.Proto
	Port         uint16
	From, Toward End
	// Both asks to judge the ingress of a pod of another node as well, since that node will not see Src. Then Toward is
	// InCluster if Dst lies in the cluster, since an address of the cluster that no known pod has is not judged yet.
	Both bool
	// Steered asks to judge the egress of a pod of another node as well: that node has led the flow to another pod, and
	// has judged it for that one. If it was its agent that led the flow there, nobody here knows for whom.
	Steered bool
}

// toItself reports whether a pod of this node speaks to itself, as it always may.
func (f *Flow) toItself() bool { return f.From.Kind == OwnPod && f.Toward == f.From }

// Verdict is what becomes of a flow.
type Verdict uint8

// The verdicts.
const (
	Permit  Verdict = iota
	Deny            // a policy says so, be it that it permits only others
	Drop            // a policy of the cluster says so, and the sender is not told
	Unknown         // it is not known yet, since a pod is not: nothing may be until it is
)

// Ruling is a verdict, and the rule that led to it; see Table.Describe. A flow that no policy is about has Rule 0.
type Ruling struct {
	Verdict Verdict
	Rule    uint64
}
