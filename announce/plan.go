package announce

import (
	"cmp"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// The times of a failover. A node that dies is passed over after Patience, and the next announcer hears of it when it
// asks: Patience + AskEvery. A node whose announcer alone ends answers for Asked before that. Both are under a second.
const (
	// Patience is for how long a node that does not answer is still taken for the announcer. It is longer than the
	// silence of an agent that starts again: 0.3 s and a handshake, a question of its announcer, and two beats.
	Patience = 650 * time.Millisecond
	// AskEvery is the pause between two questions of an announcer to its agent.
	AskEvery = 50 * time.Millisecond
	// Asked is for how long a node of which the announcer has asked can announce.
	Asked = 200 * time.Millisecond
)

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

// Equal reports whether two Plans say the same.
func (p *Plan) Equal(q *Plan) bool {
	return p.Node == q.Node && alike(p.Down, q.Down) && slices.Equal(p.Peers, q.Peers) &&
		slices.EqualFunc(p.Links, q.Links, func(a, b Link) bool { return a.Equal(&b) }) && slices.EqualFunc(p.Routes, q.Routes, Route.Equal)
}

// Equal reports whether two Links say the same.
func (l *Link) Equal(m *Link) bool {
	return l.Addr == m.Addr && l.Egress == m.Egress && l.Used == m.Used &&
		alike(l.Services, m.Services) && alike(l.Ranked, m.Ranked) && alike(l.Interfaces, m.Interfaces)
}

// alike reports whether two lists are equal. Those that are the same memory are not compared.
func alike(a, b []string) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

// Egress returns the Links of EgressAddresses.
func (p *Plan) Egress() []Link {
	n := slices.IndexFunc(p.Links, func(l Link) bool { return l.Egress == "" })
	if n < 0 {
		return p.Links
	}
	return p.Links[:n]
}

// orders is how many orders of the nodes there are at most. An address has one of them, so that a node watches few
// others however many addresses there are: with one order for each address it would watch all of them, and the beats of
// a cluster grow with the square of its nodes. Those of one watched node are 0.12 % of a processor (BenchmarkBeats),
// and of any number of nodes one watches 17 on average at most (TestWatchesFew). The price is that many addresses are
// no more evenly spread than 128 would be.
const orders = 128

// Rank orders nodes by rendezvous hashing for an address: each node's number follows from its name and the address
// alone, so that a node that comes or goes changes the order of no other two.
func Rank(addr netip.Addr, nodes []string) []string {
	type ranked struct {
		node   string
		number uint64
	}
	list := make([]ranked, len(nodes))
	order := orderOf(addr)
	for i, n := range nodes {
		list[i] = ranked{n, number(order, n)}
	}
	slices.SortFunc(list, func(a, b ranked) int { return cmp.Or(cmp.Compare(b.number, a.number), cmp.Compare(a.node, b.node)) })
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].node
	}
	return out
}

// orderOf returns which of the orders an address has.
func orderOf(addr netip.Addr) uint16 {
	h := fnv.New64a()
	a := addr.As16()
	h.Write(a[:])
	return uint16(spread(h.Sum64()) % orders)
}

func number(order uint16, node string) uint64 {
	h := fnv.New64a()
	h.Write([]byte{byte(order >> 8), byte(order)})
	h.Write([]byte(node))
	return spread(h.Sum64())
}

// spread is the finalizer of MurmurHash3: FNV moves the last bytes little.
func spread(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Watched returns the nodes that this node has to watch, sorted: those before it, where it is among the first of an
// address, and all others among the first where its pods leave from the address.
func (p *Plan) Watched() []string {
	all := map[string]bool{}
	for i := range p.Links {
		first := p.Links[i].Ranked[:min(len(p.Links[i].Ranked), Close)]
		if !p.Links[i].Used {
			first = first[:max(0, slices.Index(first, p.Node))]
		}
		for _, n := range first {
			if n != p.Node {
				all[n] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// MayRest reports whether this node may have another one rest: that one comes before it among the first of an address
// of load balancers.
func (p *Plan) MayRest(node string) bool {
	return slices.ContainsFunc(p.Links, func(l Link) bool {
		first := l.Ranked[:min(len(l.Ranked), Close)]
		return l.Egress == "" && slices.Contains(first[:max(0, slices.Index(first, p.Node))], node)
	})
}

// Self is what decides whether this node counts.
type Self struct {
	// Fit is set while it can announce.
	Fit bool
	// Askers are the nodes that ask it, each with whether it has this node rest. When nobody does, they may be nil.
	Askers map[string]bool
}

// counts reports whether this node, the i-th of an address, announces it when nobody before it does; t is the Turn so
// far. It leaves the address to the next node that asks it if that has it rest, but not when it has itself taken the
// address from one that rests: that one leaves it to this node.
func (p *Plan) counts(self *Self, l *Link, i int, t *Turn) bool {
	if !self.Fit || l.Egress != "" || len(t.Resting) > 0 {
		return self.Fit
	}
	for _, n := range l.Ranked[i+1:] {
		if rests, asks := self.Askers[n]; asks {
			return !rests
		}
	}
	return true
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
	// Resting are those of Silent that may answer, but have come and gone too often; see Record.
	Resting []string `json:"resting,omitempty"`
}

// Beat says when a node answered.
type Beat struct {
	Node string
	// Since is when this node began to ask it, Answered when it answered last; zero for never.
	Since, Answered time.Time
}

// Answers are the nodes that this node asks, by name.
type Answers map[string]Answer

// Answer is what is known of a node that is asked.
type Answer struct {
	// Answers is set while it answers. Expected is set when it has not yet, and is given the time to.
	Answers, Expected bool
	// Rests is set while addresses of load balancers are not left to it all the same.
	Rests bool
}

// Heard returns what beats say at a time.
func Heard(beats []Beat, now time.Time) Answers {
	all := make(Answers, len(beats))
	for _, b := range beats {
		last, early := b.Answered, false
		if last.IsZero() || last.Before(b.Since) {
			last, early = b.Since, true
		}
		all[b.Node] = Answer{Answers: last.IsZero() || now.Sub(last) < Patience, Expected: early}
	}
	return all
}

// Turns returns whose turn it is for each address. The nodes that are asked count while they answer; of the others,
// those that Kubernetes does not take for dead. This node counts if it is fit. Nothing else decides, so that the same
// Plan has the same Turns as long as the answers are the same. A node that rests is passed over, but not for egress
// addresses: all nodes have to know by which gateway pods leave, and only the next one knows who rests.
func (p *Plan) Turns(heard Answers, self Self) []Turn {
	answers := func(node string) bool {
		if a, asked := heard[node]; asked {
			return a.Answers
		}
		return !p.down(node)
	}
	list := make([]Turn, len(p.Links))
	for i := range p.Links {
		l := &p.Links[i]
		t := Turn{Addr: l.Addr, Services: l.Services, Egress: l.Egress, Interfaces: l.Interfaces}
		for i, n := range l.Ranked {
			if l.Egress != "" && i >= Close && slices.ContainsFunc(l.Ranked[:i], func(n string) bool { return !p.down(n) }) {
				// Nobody asks it, so all nodes go by what Kubernetes says of those before it.
				t.Silent = append(t.Silent, n)
				continue
			}
			rests := l.Egress == "" && heard[n].Answers && heard[n].Rests
			if n == p.Node && p.counts(&self, l, i, &t) || n != p.Node && answers(n) && !rests {
				t.Announcer, t.Mine, t.Expected = n, n == p.Node, n != p.Node && heard[n].Expected
				break
			}
			t.Silent = append(t.Silent, n)
			if rests {
				t.Resting = append(t.Resting, n)
			}
		}
		list[i] = t
	}
	return list
}
