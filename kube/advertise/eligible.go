package advertise

import (
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
)

// eligible returns the nodes that may announce an address which advertisements cover. Of addresses whose Services are
// served everywhere it is one list for the same advertisements.
func (w *work) eligible(ads []*ad, at *address) []string {
	var key strings.Builder
	for _, a := range ads {
		key.WriteString(a.name)
		key.WriteByte(0)
	}
	nodes := w.ranks.nodes[key.String()]
	if nodes == nil {
		nodes = w.nodes(ads)
		w.ranks.nodes[key.String()] = nodes
	}
	needs := w.needs(at)
	if slices.ContainsFunc(needs, func(n announce.Needs) bool { return n.Local }) {
		return announce.Eligible(nodes, needs)
	}
	if _, known := w.ranks.everywhere[key.String()]; !known {
		list := announce.Eligible(nodes, needs)
		if before := w.ranks.before[key.String()]; slices.Equal(before, list) {
			list = before
		}
		w.ranks.everywhere[key.String()] = list
	}
	return w.ranks.everywhere[key.String()]
}

// ranks remembers how nodes are ranked for addresses, from one Plan to the next, and the nodes that advertisements
// select, by the names of these. With 50,000 addresses and hundreds of nodes it takes seconds to rank them all.
type ranks struct {
	nodes              map[string][]announce.Node
	everywhere, before map[string][]string
	known, used        map[netip.Addr]ranking
}

type ranking struct{ eligible, ranked []string }

// next returns the ranks for the next Plan. Nodes may be others there.
func (r *ranks) next() ranks {
	return ranks{
		nodes: map[string][]announce.Node{}, everywhere: map[string][]string{}, before: r.everywhere,
		known: r.used, used: make(map[netip.Addr]ranking, len(r.used)),
	}
}

// of returns eligible nodes in the order of an address.
func (r *ranks) of(addr netip.Addr, eligible []string) []string {
	x, there := r.known[addr]
	if !there || !kube.Same(x.eligible, eligible) && !slices.Equal(x.eligible, eligible) {
		x = ranking{eligible, announce.Rank(addr, eligible)}
	}
	r.used[addr] = x
	return x.ranked
}
