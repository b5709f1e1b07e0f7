package announce

import "slices"

// Node is a node as far as load balancers are concerned.
type Node struct {
	Name string
	// Excluded nodes serve no load balancer. A leaving one serves only what no other node can.
	Excluded, Leaving bool
}

// Needs says where a Service can be served.
type Needs struct {
	// Local is set when only nodes with ready endpoints can serve the Service. Nodes are those.
	Local bool
	Nodes []string
}

// Eligible returns the names of the nodes that may announce an address at which there are the Services of needs, in
// the order of nodes. Where no node can serve all Services, those are eligible that can serve most of them.
func Eligible(nodes []Node, needs []Needs) (names []string) {
	best, leaving := 0, true
	for i := range nodes {
		n := &nodes[i]
		serves := 0
		for j := range needs {
			if !needs[j].Local || slices.Contains(needs[j].Nodes, n.Name) {
				serves++
			}
		}
		if n.Excluded || serves == 0 || serves < best || serves == best && n.Leaving && !leaving {
			continue
		}
		if serves > best || leaving && !n.Leaving {
			names = nil
		}
		best, leaving = serves, n.Leaving
		names = append(names, n.Name)
	}
	return names
}
