package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/roll"
)

// Costs are counted here, in what is built and not in time.

// one is a policy of namespace a for all of its pods, for ingress.
func one(rules ...law.Rule) *Policy {
	return &Policy{Namespace: "a", Name: "p", Ingress: Rules{Isolates: true, List: rules}}
}

func label(key, value string) law.Label { return law.Label{Key: key, Value: value} }

func where(key string, op law.Op, values ...string) law.Requirement {
	return law.Requirement{Key: key, Op: op, Values: values}
}

func own(namespace, name string, labels ...law.Label) *Pod {
	return &Pod{Namespace: namespace, Name: name, Labels: labels, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
}

func elsewhere(namespace string, i int, labels ...law.Label) *Pod {
	return &Pod{Namespace: namespace, Name: fmt.Sprintf("z%06d", i), Labels: labels, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}}
}

// TestCostOfNames: pods that rules cannot tell from each other are looked at once, however many there are.
func TestCostOfNames(t *testing.T) {
	var r law.Rule
	for i := range 2000 {
		r.Parties = append(r.Parties, law.Party{Namespaces: &law.Selector{}, Pods: law.Selector{where("pod", law.NotIn, fmt.Sprint(i))}})
	}
	r.AnyPort = true
	var list []*Pod
	for i := range 2000 {
		list = append(list, elsewhere("b", i, label("pod", fmt.Sprint("h", i))))
	}
	list[7].Labels = law.Labels{label("pod", "7")}
	table := new(Compiler).Compile(Config{Policies: []*Policy{one(r)}, Own: []*Pod{own("a", "own")}, Others: roll.From(list)})
	// There are those of b, the one that is mentioned, and the node's own.
	if _, n := table.policies.of["a"].reading.Len(); n > 3 {
		t.Errorf("%d kinds of pods were looked at", n)
	}
}

// TestCostOfOthers: nothing is compiled for namespaces that have no pods here.
func TestCostOfOthers(t *testing.T) {
	there := one(law.Rule{Everybody: true, AnyPort: true})
	there.Namespace = "b"
	c := Config{Policies: []*Policy{one(), there}, Own: []*Pod{own("a", "own")}, Others: roll.Of(elsewhere("b", 1))}
	var compiler Compiler
	table := compiler.Compile(c)
	if !table.policies.of["a"].reading.Asked() || table.policies.of["b"].reading.Asked() {
		t.Error("compiled are not the namespaces of this node's pods")
	}
	f := Flow{Src: at("192.0.2.1"), Dst: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Both: true}
	if r := table.Judge(&f); r.Verdict != Permit || r.Rule == 0 || !table.policies.of["b"].reading.Asked() {
		t.Errorf("ruling %+v", r)
	}
	c.Policies = []*Policy{c.Policies[0], {Namespace: "c", Name: "new"}, there}
	slices.SortFunc(c.Policies, func(a, b *Policy) int { return int(a.Namespace[0]) - int(b.Namespace[0]) })
	if next := compiler.Compile(c); next.policies.of["b"] != table.policies.of["b"] || next.policies.of["a"] != table.policies.of["a"] {
		t.Error("a policy of another namespace has others compiled again")
	}
}

// TestCostOfElsewhere: what policies permit a pod of another node is found out once for each of its states.
func TestCostOfElsewhere(t *testing.T) {
	var rules []law.Rule
	for i := range 1000 {
		rules = append(rules, law.Rule{AnyPort: true, Parties: []law.Party{{Namespaces: &law.Selector{where("k", law.In, fmt.Sprint(i))}}}})
	}
	web := one(rules...)
	web.Pods = law.Selector{where("app", law.In, "web")}
	c := Config{
		Policies: []*Policy{web}, Namespaces: []*Namespace{{"b", law.Labels{label("k", "999")}}, {"c", law.Labels{label("k", "none")}}},
		Others: roll.Of(elsewhere("a", 1, label("app", "web")), elsewhere("b", 2), elsewhere("c", 3)),
	}
	var compiler Compiler
	judge := func(src string, want Verdict) {
		t.Helper()
		table := compiler.Compile(c)
		f := Flow{Src: at(src), Dst: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Both: true}
		if r := table.Judge(&f); r.Verdict != want {
			t.Errorf("%s: %+v", src, r)
		}
		if n := testing.AllocsPerRun(10, func() { table.Judge(&f) }); n != 0 {
			t.Errorf("%s: %v allocations", src, n)
		}
	}
	judge("10.1.0.2", Permit)
	judge("10.1.0.3", Deny)
	c.Others = c.Others.With(roll.Edit[*Pod]{At: 0, To: elsewhere("a", 1)})
	judge("10.1.0.3", Permit) // no policy selects it any longer
	c.Others = c.Others.With(roll.Edit[*Pod]{At: 0, To: elsewhere("a", 1, label("app", "web"))})
	judge("10.1.0.3", Deny)
	c.Policies = []*Policy{{Namespace: "a", Name: "q", Egress: Rules{Isolates: true}}}
	judge("10.1.0.3", Permit)
}

// TestNothingIsKept: what pods were by labels that they have no longer is forgotten, for pods of this node and others.
func TestNothingIsKept(t *testing.T) {
	var rules []law.Rule
	for i := range 12 {
		rules = append(rules, law.Rule{AnyPort: true, Parties: []law.Party{{Pods: law.Selector{where(fmt.Sprint("l", i), law.Exists)}}}})
	}
	c := Config{Policies: []*Policy{one(rules...)}, Own: []*Pod{own("a", "own")}, Others: roll.Of(elsewhere("a", 1))}
	var compiler Compiler
	for k := range 4096 {
		var labels law.Labels
		for i := range 12 {
			if k>>i&1 == 1 {
				labels = append(labels, label(fmt.Sprint("l", i), ""))
			}
		}
		slices.SortFunc(labels, func(a, b law.Label) int { return cmp.Compare(a.Key, b.Key) })
		c.Own = []*Pod{own("a", "own", labels...)}
		c.Others = c.Others.With(roll.Edit[*Pod]{At: 0, To: elsewhere("a", 1, labels...)})
		table := compiler.Compile(c)
		r := table.policies.of["a"]
		groups, unlike := r.reading.Len()
		if n := max(compiler.groups.Len(), groups, unlike); n > 100 {
			t.Fatalf("after %d changes %d groups of pods are remembered", k, n)
		}
		f := Flow{Src: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Toward: End{Kind: OwnPod, Name: "a/own"}}
		if got := table.Judge(&f); (got.Verdict == Permit) != (k > 0) {
			t.Fatalf("labels %v: %+v", labels, got)
		}
	}
}

// TestNothingIsJudgedAgain where what has changed means nothing.
func TestNothingIsJudgedAgain(t *testing.T) {
	there := elsewhere("b", 1)
	c := Config{Policies: []*Policy{one()}, Own: []*Pod{own("a", "own")}, Others: roll.Of(there)}
	var compiler Compiler
	before := compiler.Compile(c)
	c.Others = roll.Of(there, &Pod{Namespace: "b", Name: "zz-pending"})
	if compiler.Compile(c) != before {
		t.Error("a pod without an address, elsewhere, makes another Table")
	}
	c.Others = roll.Of(there)
	if compiler.Compile(c) != before {
		t.Error("a pod without an address that goes makes another Table")
	}
	c.Others = roll.Of(there, elsewhere("b", 2))
	if compiler.Compile(c) == before {
		t.Error("a pod that has an address is not known")
	}
}
