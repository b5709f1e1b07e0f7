package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// ruleOf returns a rule of the cluster for all ports, with pods of all namespaces that have a label "team".
func ruleOf(a tiers.Action, team string) tiers.Rule {
	return tiers.Rule{Action: a, Rule: law.Rule{AnyPort: true, Parties: []law.Party{{Namespaces: &law.Selector{}, Pods: law.Selector{where("team", law.In, team)}}}}}
}

// clusterPolicy is one for the ingress of all pods.
func clusterPolicy(name string, tier tiers.Tier, priority int32, rules ...tiers.Rule) *tiers.Policy {
	return &tiers.Policy{Name: name, Tier: tier, Priority: priority, Ingress: rules}
}

// TestTiers: the tiers come in their order, and in a tier the priority, the name, and the order of rules.
func TestTiers(t *testing.T) {
	const pass, accept, deny = tiers.Pass, tiers.Permit, tiers.Deny
	permits := one(law.Rule{AnyPort: true, Parties: []law.Party{{Namespaces: &law.Selector{}, Pods: law.Selector{where("team", law.In, "red")}}}})
	closed := one()
	for _, c := range []struct {
		name    string
		network *Policy // nil: none
		cluster []*tiers.Policy
		want    Verdict
		by      string
	}{
		{"Admin denies what a NetworkPolicy permits", permits, []*tiers.Policy{clusterPolicy("c", tiers.Admin, 5, ruleOf(deny, "red"))}, Drop, "ClusterNetworkPolicy c ingress[0]"},
		{"Admin accepts what a NetworkPolicy denies", closed, []*tiers.Policy{clusterPolicy("c", tiers.Admin, 5, ruleOf(deny, "blue"), ruleOf(accept, "red"))}, Permit, "ClusterNetworkPolicy c ingress[1]"},
		{"Pass leaves it to the NetworkPolicy", permits, []*tiers.Policy{clusterPolicy("c", tiers.Admin, 5, ruleOf(pass, "red"), ruleOf(deny, "red"))}, Permit, "NetworkPolicy a/p ingress[0]"},
		{"Pass leaves it to the NetworkPolicy that denies", closed, []*tiers.Policy{clusterPolicy("c", tiers.Admin, 5, ruleOf(pass, "red"), ruleOf(accept, "red"))}, Deny, "NetworkPolicy a/p ingress"},
		{"Baseline yields to a NetworkPolicy", permits, []*tiers.Policy{clusterPolicy("c", tiers.Baseline, 5, ruleOf(deny, "red"))}, Permit, "NetworkPolicy a/p ingress[0]"},
		{"Baseline permits nothing that a NetworkPolicy denies", closed, []*tiers.Policy{clusterPolicy("c", tiers.Baseline, 5, ruleOf(accept, "red"))}, Deny, "NetworkPolicy a/p ingress"},
		{"Baseline denies where there is none", nil, []*tiers.Policy{clusterPolicy("c", tiers.Baseline, 5, ruleOf(deny, "red"))}, Drop, "ClusterNetworkPolicy c ingress[0]"},
		{"Pass goes on to Baseline", nil, []*tiers.Policy{clusterPolicy("a", tiers.Admin, 1, ruleOf(pass, "red")), clusterPolicy("b", tiers.Baseline, 1, ruleOf(deny, "red"))}, Drop, "ClusterNetworkPolicy b ingress[0]"},
		{"nobody is isolated", nil, []*tiers.Policy{clusterPolicy("c", tiers.Admin, 5, ruleOf(accept, "blue"))}, Permit, ""},
		{"the smaller priority", nil, []*tiers.Policy{clusterPolicy("a", tiers.Admin, 6, ruleOf(deny, "red")), clusterPolicy("z", tiers.Admin, 5, ruleOf(accept, "red"))}, Permit, "ClusterNetworkPolicy z ingress[0]"},
		{"the first name", nil, []*tiers.Policy{clusterPolicy("b", tiers.Admin, 5, ruleOf(accept, "red")), clusterPolicy("a", tiers.Admin, 5, ruleOf(deny, "red"))}, Drop, "ClusterNetworkPolicy a ingress[0]"},
	} {
		config := Config{
			Cluster: c.cluster, Namespaces: []*Namespace{{"a", nil}, {"b", nil}}, Own: []*Pod{own("a", "own")},
			Others: roll.Of(elsewhere("b", 1, label("team", "red"))),
		}
		if c.network != nil {
			config.Policies = []*Policy{c.network}
		}
		table := new(Compiler).Compile(config)
		f := Flow{Src: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Toward: End{Kind: OwnPod, Name: "a/own"}}
		if r := table.Judge(&f); r.Verdict != c.want || table.Describe(r.Rule) != c.by {
			t.Errorf("%s: %+v by %q, want %d by %q", c.name, r, table.Describe(r.Rule), c.want, c.by)
		}
	}
}

// TestNodesAreNamed by their labels, as soon as a policy does so, and when a label has changed.
func TestNodesAreNamed(t *testing.T) {
	c := Config{
		Cluster: []*tiers.Policy{{Name: "c", Egress: []tiers.Rule{ruleOf(tiers.Deny, "red")}}}, Namespaces: []*Namespace{{"a", nil}}, Own: []*Pod{own("a", "own")},
		Nodes: []Node{{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}, Labels: law.Labels{label("role", "edge")}}},
	}
	var compiler Compiler
	judge := func(dst string, want Verdict) {
		t.Helper()
		f := Flow{Src: at("10.0.0.1"), Dst: at(dst), Proto: packet.TCP, Port: 80, From: End{Kind: OwnPod, Name: "a/own"}, Toward: End{Kind: InCluster}}
		if r := compiler.Compile(c).Judge(&f); r.Verdict != want {
			t.Errorf("%s: %+v, want %d", dst, r, want)
		}
	}
	judge("192.0.2.2", Permit)
	nodes := tiers.Rule{Action: tiers.Deny, Rule: law.Rule{AnyPort: true, Parties: []law.Party{{Nodes: true, Pods: law.Selector{where("role", law.In, "edge")}}}}}
	c.Cluster = []*tiers.Policy{{Name: "c", Egress: []tiers.Rule{nodes}}}
	judge("192.0.2.2", Drop)
	judge("192.0.2.3", Drop)
	c.Nodes = slices.Clone(c.Nodes)
	c.Nodes[0].Labels = nil
	judge("192.0.2.2", Permit)
}

// TestWhoIsNotKnown waits where a rule may be for him, and nowhere else.
func TestWhoIsNotKnown(t *testing.T) {
	rule := ruleOf(tiers.Deny, "red")
	rule.AnyPort, rule.Ports = false, []law.Ports{{Proto: packet.TCP, First: 80, Last: 80}}
	all := tiers.Rule{Action: tiers.Permit, Rule: law.Rule{Everybody: true, AnyPort: true}}
	for _, c := range []struct {
		name  string
		from  EndKind
		rules []tiers.Rule
		port  uint16
		want  Verdict
	}{
		{"a pod of which nobody has heard", InCluster, []tiers.Rule{rule}, 80, Unknown},
		{"to a port of no rule", InCluster, []tiers.Rule{rule}, 81, Permit},
		{"a rule for everybody comes first", InCluster, []tiers.Rule{all, rule}, 80, Permit},
		{"a rule for everybody comes after", InCluster, []tiers.Rule{rule, all}, 80, Unknown},
		{"a client outside", ByAddress, []tiers.Rule{rule}, 80, Permit},
	} {
		config := Config{Cluster: []*tiers.Policy{clusterPolicy("c", tiers.Admin, 5, c.rules...)}, Namespaces: []*Namespace{{"a", nil}}, Own: []*Pod{own("a", "own")}}
		f := Flow{Src: at("10.1.0.1"), Proto: packet.TCP, Port: c.port, From: End{Kind: c.from}, Toward: End{Kind: OwnPod, Name: "a/own"}}
		if r := new(Compiler).Compile(config).Judge(&f); r.Verdict != c.want {
			t.Errorf("%s: %+v, want %d", c.name, r, c.want)
		}
	}
}

// withCluster adds n policies of the cluster for all pods, of as many rules, with ports, ranges and labels of their
// own.
func withCluster(c Config, n int) Config {
	c.Namespaces = []*Namespace{{"a", nil}}
	for i := range n {
		p := &tiers.Policy{Name: fmt.Sprintf("c%03d", i), Tier: pickTier(i), Priority: int32(i)}
		for j := range n {
			k := n*i + j
			rule := tiers.Rule{Action: tiers.Deny, Rule: law.Rule{
				Ports: []law.Ports{{Proto: packet.TCP, First: uint16(10_000 + k), Last: uint16(10_000 + k)}},
				Parties: []law.Party{
					{Namespaces: &law.Selector{}, Pods: law.Selector{where("app", law.In, fmt.Sprint("app-", k))}},
					{Range: netip.PrefixFrom(netip.AddrFrom4([4]byte{101, byte(k >> 8), byte(k), 0}), 24)},
				},
			}}
			p.Egress, p.Ingress = append(p.Egress, rule), append(p.Ingress, rule)
		}
		c.Cluster = append(c.Cluster, p)
	}
	return c
}

func pickTier(i int) tiers.Tier {
	if i%2 == 0 {
		return tiers.Admin
	}
	return tiers.Baseline
}

// BenchmarkJudgeCluster judges a new flow as BenchmarkJudge does, and 100 policies of the cluster with 100 rules for
// each direction come before.
func BenchmarkJudgeCluster(b *testing.B) {
	table := new(Compiler).Compile(withCluster(large(1000, 10_000), 100))
	for name, f := range flowsOf {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Judge(&f)
			}
		})
	}
}

// BenchmarkCompileCluster compiles 100 policies of the cluster with 100 rules for each direction, for 10,000 other
// pods, and then changes one.
func BenchmarkCompileCluster(b *testing.B) {
	c := withCluster(large(0, 10_000), 100)
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			new(Compiler).Compile(c)
		}
	})
	b.Run("one pod", func(b *testing.B) {
		c, n := c, 0
		var compiler Compiler
		compiler.Compile(c)
		for b.Loop() {
			n++
			c.Others = c.Others.With(roll.Edit[*Pod]{At: 500, To: otherPod(500, n%2000)})
			compiler.Compile(c)
		}
	})
}

// TestClusterAllocatesNothing, and changes nothing where no rule of the cluster is for a flow.
func TestClusterAllocatesNothing(t *testing.T) {
	table := new(Compiler).Compile(withCluster(large(100, 1000), 20))
	f := Flow{Src: at("101.0.5.1"), Proto: packet.TCP, Port: 10_005, Toward: End{Kind: OwnPod, Name: "a/own007"}}
	if r := table.Judge(&f); r.Verdict != Drop {
		t.Errorf("%+v, which is %s", r, table.Describe(r.Rule))
	}
	for name, f := range map[string]Flow{"by a term": flowsOf["by a term"], "dropped": f} {
		if n := testing.AllocsPerRun(100, func() { table.Judge(&f) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
