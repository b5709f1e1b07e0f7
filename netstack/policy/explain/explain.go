// Package explain says why a flow may be, or may not: which policies select its two ends, which rule decides for each,
// and what would have to change. It asks the Tables that judge, and no other code decides.
//
// Each end of a flow is judged by its own node. What another node says is judged here as that node would, by what this
// one knows of the pods and policies of the cluster.
package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/audit"
)

// Question asks for a flow.
type Question struct {
	// From and To are "namespace/name" of pods, or addresses.
	From, To string
	Proto    packet.Proto
	Port     uint16
}

var protocols = map[string]packet.Proto{"TCP": packet.TCP, "UDP": packet.UDP, "SCTP": packet.SCTP}

// Parse reads a question: from is POD or an address, to is POD:PORT, or an address and a port, and may have the
// protocol after a slash. A pod without a namespace is in "default".
func Parse(from, to string) (q Question, err error) {
	q.Proto = packet.TCP
	at := strings.LastIndexByte(to, ':')
	if at < 0 {
		return q, fmt.Errorf("%q has no port: expected POD:PORT or POD:PORT/PROTOCOL", to)
	}
	port, proto, named := strings.Cut(to[at+1:], "/")
	if named {
		var known bool
		if q.Proto, known = protocols[strings.ToUpper(proto)]; !known {
			return q, fmt.Errorf("%q is no protocol with ports: expected TCP, UDP or SCTP", proto)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return q, fmt.Errorf("%q is no port: expected a number from 1 to 65535", port)
	}
	q.From, q.To, q.Port = whole(from), whole(to[:at]), uint16(n)
	return q, nil
}

// whole returns an address without brackets, or the name of a pod with its namespace.
func whole(text string) string {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return a.Unmap().String()
	}
	if !strings.Contains(text, "/") {
		return "default/" + text
	}
	return text
}

// Node is what is asked.
type Node struct {
	// Tables judge; nil where there are no policies. Config is what they were compiled from.
	Tables *audit.Tables
	Config *policy.Config
	// At returns who has an address.
	At func(netip.Addr) policy.End
}

// Answer is why a flow may be, or may not.
type Answer struct {
	Now policy.Explanation
	// Staged is what would be if the staged policies were in force as well; nil if there are none.
	Staged *policy.Explanation
	// Src and Dst are the addresses of the flow.
	Src, Dst netip.Addr
}

var errNone = errors.New("there are no policies, so everything is permitted")

// Ask answers a question. It returns an error if there is no policy, or no such pod.
func (n *Node) Ask(q Question) (a Answer, err error) {
	if n.Tables == nil {
		return a, errNone
	}
	from, sources, err := n.find(q.From)
	if err != nil {
		return a, err
	}
	toward, destinations, err := n.find(q.To)
	if err != nil {
		return a, err
	}
	for _, dst := range destinations {
		i := slices.IndexFunc(sources, func(a netip.Addr) bool { return a.Is4() == dst.Is4() })
		if i < 0 {
			continue
		}
		a.Src, a.Dst = sources[i], dst
		f := policy.Flow{
			Src: packet.AddrFrom(a.Src), Dst: packet.AddrFrom(a.Dst), Proto: q.Proto, Port: q.Port, From: from, Toward: toward,
			Both: true, Steered: from.Kind == policy.InCluster,
		}
		if n.Tables.InForce != nil {
			a.Now = n.Tables.InForce.Explain(&f)
		}
		if n.Tables.Staged != nil {
			would := n.Tables.Staged.Explain(&f)
			a.Staged = &would
		}
		return a, nil
	}
	return a, fmt.Errorf("%s and %s have no addresses of one family", q.From, q.To)
}

// find returns the end that a pod's name or an address is, and its addresses.
func (n *Node) find(text string) (policy.End, []netip.Addr, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return n.At(a), []netip.Addr{a}, nil
	}
	is := func(p *policy.Pod) bool { return p.Namespace+"/"+p.Name == text }
	for _, p := range n.Config.Own {
		if is(p) {
			return policy.End{Kind: policy.OwnPod, Name: text, UID: p.UID}, p.Addrs, addressed(p)
		}
	}
	for _, p := range n.Config.Others.All() {
		if is(p) {
			return policy.End{Kind: policy.InCluster}, p.Addrs, addressed(p)
		}
	}
	return policy.End{}, nil, fmt.Errorf("this node knows no pod %s that has a network of its own", text)
}

func addressed(p *policy.Pod) error {
	if len(p.Addrs) == 0 {
		return fmt.Errorf("pod %s/%s has no address yet", p.Namespace, p.Name)
	}
	return nil
}
