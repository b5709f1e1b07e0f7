package announce

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

// Patience is for how long a node that does not answer is still taken for the announcer. It is longer than an agent
// takes to start again (0.3 s, and a handshake), and leaves 0.2 s of a second to notice and to claim.
const Patience = 800 * time.Millisecond

// Close is how many nodes of an address watch those before them.
const Close = 4

// Plan is what is to be announced, as one node sees it. Its lists are sorted and must not be changed.
type Plan struct {
	// Node is this node.
	Node string
	// Links are the addresses that are announced by ARP and NDP, by whatever node. Those of EgressAddresses come first.
	Links []Link
	// Down are the nodes that Kubernetes takes for dead.
	Down []string
	// Peers are the routers with which this node has BGP sessions, and Routes what it tells them.
	Peers  []Peer
	Routes []Route
}

// Link is an address that is announced by ARP or NDP.
type Link struct {
	Addr netip.Addr
	// Services are those at the address, "namespace/name".
	Services []string
	// Egress is the EgressAddress with the address, "" for none. Used is set when pods of this node leave from it.
	Egress string
	Used   bool
	// Ranked are the eligible nodes, as Rank orders them.
	Ranked []string
	// Interfaces are those on which this node announces the address: names, or beginnings of names with a * at the end.
	// None: the interface that has the node's address.
	Interfaces []string
}

// Egress returns the Links of EgressAddresses.
func (p *Plan) Egress() []Link {
	n := slices.IndexFunc(p.Links, func(l Link) bool { return l.Egress == "" })
	if n < 0 {
		return p.Links
	}
	return p.Links[:n]
}

// Rank orders nodes by rendezvous hashing for an address: each node's number follows from its name and the address
// alone, so that a node that comes or goes changes the order of no other two.
func Rank(addr netip.Addr, nodes []string) []string {
	type ranked struct {
		node   string
		number uint64
	}
	list := make([]ranked, len(nodes))
	for i, n := range nodes {
		list[i] = ranked{n, number(addr, n)}
	}
	slices.SortFunc(list, func(a, b ranked) int { return cmp.Or(cmp.Compare(b.number, a.number), cmp.Compare(a.node, b.node)) })
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].node
	}
	return out
}

func number(addr netip.Addr, node string) uint64 {
	h := fnv.New64a()
	a := addr.As16()
	h.Write(a[:])
	h.Write([]byte(node))
	// FNV moves the last bytes little; the finalizer of MurmurHash3 spreads them.
	x := binary.BigEndian.Uint64(h.Sum(nil))
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Watched returns the nodes that this node has to watch, sorted: those before it, where it is among the first of an
// address, and all others among the first where its pods leave from the address.
func (p *Plan) Watched() (list []string) {
	for i := range p.Links {
		l := &p.Links[i]
		at := slices.Index(l.Ranked, p.Node)
		switch {
		case l.Used:
			for _, n := range l.Ranked[:min(len(l.Ranked), Close)] {
				if n != p.Node {
					list = append(list, n)
				}
			}
		case at > 0 && at < Close:
			list = append(list, l.Ranked[:at]...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// down reports whether Kubernetes takes a node for dead.
func (p *Plan) down(node string) bool {
	_, down := slices.BinarySearch(p.Down, node)
	return down
}

// Turn says whose turn it is to announce an address.
type Turn struct {
	Addr       netip.Addr `json:"addr"`
	Services   []string   `json:"services"`
	Egress     string     `json:"egress,omitempty"`
	Interfaces []string   `json:"interfaces,omitempty"`
	// Announcer is the node that announces the address; "" when no node can.
	Announcer string `json:"announcer,omitempty"`
	// Mine is set when that is this node.
	Mine bool `json:"mine,omitempty"`
	// Expected is set when it was asked and has not answered yet, and is given the time to.
	Expected bool `json:"expected,omitempty"`
	// Silent are the nodes that come before the announcer and do not answer.
	Silent []string `json:"silent,omitempty"`
}

// Beat says when a node answered.
type Beat struct {
	Node string
	// Since is when this node began to ask it, Answered when it answered last; zero for never.
	Since, Answered time.Time
}

// Turns returns whose turn it is for each address. The nodes of beats count while they answer; of the others, those
// that Kubernetes does not take for dead. This node counts if it is fit.
func (p *Plan) Turns(beats []Beat, fit bool, now time.Time) []Turn {
	asked, expected := make(map[string]bool, len(beats)), map[string]bool{}
	for _, b := range beats {
		last := b.Answered
		if last.IsZero() || last.Before(b.Since) { // it is given the time to answer
			last, expected[b.Node] = b.Since, true
		}
		asked[b.Node] = last.IsZero() || now.Sub(last) < Patience
	}
	answers := func(node string) bool {
		if node == p.Node {
			return fit
		}
		if a, known := asked[node]; known {
			return a
		}
		return !p.down(node)
	}
	list := make([]Turn, len(p.Links))
	for i := range p.Links {
		l := &p.Links[i]
		t := Turn{Addr: l.Addr, Services: l.Services, Egress: l.Egress, Interfaces: l.Interfaces}
		for i, n := range l.Ranked {
			if l.Egress != "" && i >= Close && slices.ContainsFunc(l.Ranked[:i], func(n string) bool { return !p.down(n) }) {
				t.Silent = append(t.Silent, n) // nobody asks it, so all nodes go by what Kubernetes says of those before it
				continue
			}
			if answers(n) {
				t.Announcer, t.Mine, t.Expected = n, n == p.Node, n != p.Node && expected[n]
				break
			}
			t.Silent = append(t.Silent, n)
		}
		list[i] = t
	}
	return list
}
