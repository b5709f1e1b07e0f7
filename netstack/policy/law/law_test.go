package law

import (
	"fmt"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// words returns how many words the sets of rules of intervals have, each memory counted once.
func (c *intervals) words() (n int) {
	seen := map[*uint64]bool{}
	for _, s := range c.rules {
		if !seen[&s[0]] {
			seen[&s[0]] = true
			n += len(s)
		}
	}
	return n
}

// TestCostOfPorts: 5,000 rules with a selector and ports that contain each other, for which each port has other rules,
// come to one set of bits for each interval. Costs are counted in what is built, and not in time.
func TestCostOfPorts(t *testing.T) {
	const n = 5000
	rules := make([]*Rule, n)
	var size Size
	for i := range rules {
		rules[i] = &Rule{
			Ports:   []Ports{{Proto: packet.TCP, First: uint16(1 + i), Last: uint16(65535 - i)}},
			Parties: []Party{{Pods: Selector{{"k", In, []string{fmt.Sprint(i)}}}}},
		}
		size = size.Plus(rules[i].Size())
	}
	if size != (Size{Rules: n, Selectors: 2 * n, Ports: n}) {
		t.Errorf("size %+v", size)
	}
	l := Of(rules)
	if got := l.ports[0].words(); got > (2*n+1)*(n/64+1) {
		t.Errorf("%d words for ports", got)
	}
	if len(l.parties.list) != n {
		t.Errorf("%d parties, want one for each rule", len(l.parties.list))
	}
	groups := NewGroups()
	g := groups.Of("a", Labels{{"k", "1000"}})
	groups.Publish()
	naming := NewReading(func() *Law { return l }, "a", nil, groups).Naming(g).Certain
	all := l.Set()
	for i := range n {
		all.Add(i)
	}
	for port, want := range map[uint16]int{1000: -1, 1001: 1000, 64535: 1000, 64536: -1} {
		if got := l.First(all, naming, &Query{Proto: packet.TCP, Port: port}); got != want {
			t.Errorf("port %d: rule %d, want %d", port, got, want)
		}
	}
}

// TestFirst: of several rules that are for a flow, it is the first, whatever they name it by.
func TestFirst(t *testing.T) {
	named := Rule{Everybody: true, Ports: []Ports{{Proto: packet.TCP, Name: "web"}}}
	numbered := Rule{Everybody: true, Ports: []Ports{{Proto: packet.TCP, First: 80, Last: 80}}}
	ranged := Rule{AnyPort: true, Parties: []Party{{Range: netip.MustParsePrefix("192.0.2.0/24")}}}
	node := Rule{AnyPort: true, Parties: []Party{{Nodes: true, Pods: Selector{{"role", In, []string{"edge"}}}}}}
	pod := Rule{AnyPort: true, Parties: []Party{{Namespaces: &Selector{}, Pods: Selector{{"role", In, []string{"edge"}}}}}}
	groups := NewGroups()
	onNode, ofPod := groups.OfNode(Labels{{"role", "edge"}}), groups.Of("a", Labels{{"role", "edge"}})
	groups.Publish()
	spaces := map[string]Labels{"a": {{NameLabel, "a"}}}
	there := packet.AddrFrom(netip.MustParseAddr("192.0.2.7"))
	for _, c := range []struct {
		name        string
		rules       []*Rule
		group       int
		want, ofAny int
	}{
		{"named before numbered", []*Rule{&named, &numbered}, Nobody, 0, 0},
		{"numbered before named", []*Rule{&numbered, &named}, Nobody, 0, 0},
		{"range last", []*Rule{&pod, &node, &ranged}, Nobody, 2, 0},
		{"node", []*Rule{&pod, &node, &ranged}, onNode, 1, 0},
		{"pod", []*Rule{&node, &pod, &ranged}, ofPod, 1, 1},
		{"nobody", []*Rule{&pod, &node}, Nobody, -1, 0},
	} {
		l := Of(c.rules)
		all := l.Set()
		for i := range c.rules {
			all.Add(i)
		}
		r := NewReading(func() *Law { return l }, "", spaces, groups)
		q := Query{Proto: packet.TCP, Port: 80, Addr: there, Server: []NamedPort{{"web", packet.TCP, 80}}}
		if got := l.First(all, r.Naming(c.group).Certain, &q); got != c.want {
			t.Errorf("%s: rule %d, want %d", c.name, got, c.want)
		}
		if got := l.FirstOfAny(all, &q); got != c.ofAny {
			t.Errorf("%s: it may be rule %d, want %d", c.name, got, c.ofAny)
		}
	}
}
