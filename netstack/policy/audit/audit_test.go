package audit

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

func at(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

// network returns a policy for the ingress of all pods of namespace a, from ranges.
func network(name string, staged bool, from ...string) *policy.Policy {
	rule := law.Rule{AnyPort: true}
	for _, text := range from {
		rule.Parties = append(rule.Parties, law.Party{Range: netip.MustParsePrefix(text)})
	}
	return &policy.Policy{Namespace: "a", Name: name, Ingress: policy.Rules{Isolates: true, List: []law.Rule{rule}}, Staged: staged}
}

// cluster returns a policy for the ingress of all pods, with one rule for everybody.
func cluster(name string, staged bool, tier tiers.Tier, priority int32, action tiers.Action) *tiers.Policy {
	return &tiers.Policy{Name: name, Tier: tier, Priority: priority, Staged: staged, Ingress: []tiers.Rule{{Action: action, Rule: law.Rule{Everybody: true, AnyPort: true}}}}
}

// TestStaged: what is in force is what would be without staged policies, and what would be is what all do together.
func TestStaged(t *testing.T) {
	const staged, enforced = true, false
	const client, all = "192.0.2.7/32", "0.0.0.0/0"
	for _, c := range []struct {
		name    string
		network []*policy.Policy
		cluster []*tiers.Policy
		now     policy.Verdict
		would   string // the rule of the finding, with what would be; "" for no finding
	}{
		{"a staged policy alone isolates nobody", []*policy.Policy{network("s", staged)}, nil, policy.Permit, "deny by NetworkPolicy a/s ingress"},
		{"one that permits finds nothing", []*policy.Policy{network("s", staged, client)}, nil, policy.Permit, ""},
		{"one that adds to another", []*policy.Policy{network("e", enforced), network("s", staged, client)}, nil, policy.Deny, "permit by NetworkPolicy a/s ingress[0]"},
		{"one that another makes needless", []*policy.Policy{network("e", enforced, all), network("s", staged)}, nil, policy.Permit, ""},
		{"two of which one permits", []*policy.Policy{network("s", staged), network("t", staged, client)}, nil, policy.Permit, ""},
		{"two that do not", []*policy.Policy{network("s", staged), network("t", staged)}, nil, policy.Permit, "deny by NetworkPolicy a/s ingress"},
		{"Deny of the cluster", nil, []*tiers.Policy{cluster("s", staged, tiers.Admin, 1, tiers.Deny)}, policy.Permit, "deny by ClusterNetworkPolicy s ingress[0]"},
		{"Accept before a Deny", nil, []*tiers.Policy{cluster("s", staged, tiers.Admin, 1, tiers.Permit), cluster("e", enforced, tiers.Admin, 2, tiers.Deny)}, policy.Drop, "permit by ClusterNetworkPolicy s ingress[0]"},
		{"Accept after a Deny", nil, []*tiers.Policy{cluster("s", staged, tiers.Admin, 3, tiers.Permit), cluster("e", enforced, tiers.Admin, 2, tiers.Deny)}, policy.Drop, ""},
		{"Pass before a Deny, and nothing after it", nil, []*tiers.Policy{cluster("s", staged, tiers.Admin, 1, tiers.Pass), cluster("e", enforced, tiers.Admin, 2, tiers.Deny)}, policy.Drop, "permit by nothing"},
		{"Pass before an Accept, to a policy in force", []*policy.Policy{network("e", enforced)}, []*tiers.Policy{cluster("s", staged, tiers.Admin, 1, tiers.Pass), cluster("e", enforced, tiers.Admin, 2, tiers.Permit)}, policy.Permit, "deny by NetworkPolicy a/e ingress"},
		{"a staged Deny that a staged Accept precedes", nil, []*tiers.Policy{cluster("s", staged, tiers.Admin, 1, tiers.Permit), cluster("t", staged, tiers.Admin, 2, tiers.Deny)}, policy.Permit, ""},
		{"Baseline, which a staged NetworkPolicy replaces", []*policy.Policy{network("s", staged, client)}, []*tiers.Policy{cluster("e", enforced, tiers.Baseline, 1, tiers.Deny)}, policy.Drop, "permit by NetworkPolicy a/s ingress[0]"},
	} {
		findings := NewFindings(time.Now)
		tables := NewCompiler(findings).Compile(policy.Config{
			Policies: c.network, Cluster: c.cluster, Namespaces: []*policy.Namespace{{Name: "a"}}, Own: []*policy.Pod{{Namespace: "a", Name: "own"}},
		})
		f := policy.Flow{Src: at("192.0.2.7"), Dst: at("10.0.0.1"), Proto: packet.TCP, Port: 80, Toward: policy.End{Kind: policy.OwnPod, Name: "a/own"}}
		if r := tables.Judge(&f, Asked{Begins: true}); r.Verdict != c.now {
			t.Errorf("%s: %+v, want %d", c.name, r, c.now)
		}
		would := ""
		for _, x := range findings.List(tables) {
			would = map[policy.Verdict]string{policy.Permit: "permit", policy.Deny: "deny", policy.Drop: "deny"}[x.Would]
			if would += " by nothing"; x.Rule != 0 {
				would = would[:len(would)-len("nothing")] + x.By.String() + " " + x.Rule.String()
			}
			if x.Begun != 1 || x.Standing != 0 || x.Src != f.Src || x.Port != 80 {
				t.Errorf("%s: %+v", c.name, x)
			}
		}
		if would != c.would {
			t.Errorf("%s: would %q, want %q", c.name, would, c.would)
		}
	}
}

// TestNothingStaged: there is one Table, and no Tables for no policies.
func TestNothingStaged(t *testing.T) {
	c := NewCompiler(NewFindings(time.Now))
	if tables := c.Compile(policy.Config{}); tables != nil {
		t.Errorf("%+v for no policies", tables)
	}
	own := []*policy.Pod{{Namespace: "a", Name: "own"}}
	both := policy.Config{Own: own, Policies: []*policy.Policy{network("e", false), network("s", true)}}
	if tables := c.Compile(both); tables.InForce == nil || tables.Staged == nil {
		t.Errorf("%+v", tables)
	}
	only := both
	only.Policies = only.Policies[:1]
	if tables := c.Compile(only); tables.InForce == nil || tables.Staged != nil {
		t.Errorf("%+v", tables)
	}
	only.Policies = both.Policies[1:]
	tables := c.Compile(only)
	if tables.InForce != nil || tables.Staged == nil {
		t.Errorf("%+v", tables)
	}
	unheard := policy.Flow{Src: at("192.0.2.7"), Dst: at("10.0.0.1"), Proto: packet.TCP, Port: 80, Toward: policy.End{Kind: policy.OwnPod, Name: "a/young"}}
	if r := tables.Judge(&unheard, Asked{}); r != (policy.Ruling{}) {
		t.Errorf("a pod that is not known yet: %+v", r)
	}
	if n := c.findings.Totals(); n != (Totals{}) {
		t.Errorf("found %+v", n)
	}
}

// TestFindings: flows of one kind are one Finding, those that were seen last are kept, and what is found of a policy
// that has changed is not told.
func TestFindings(t *testing.T) {
	now := time.Unix(0, 0)
	findings := NewFindings(func() time.Time { now = now.Add(time.Second); return now })
	c := NewCompiler(findings)
	config := policy.Config{Own: []*policy.Pod{{Namespace: "a", Name: "own"}}, Policies: []*policy.Policy{network("s", true)}}
	tables := c.Compile(config)
	judge := func(port uint16, begins bool) {
		f := policy.Flow{Src: at("192.0.2.7"), Dst: at("10.0.0.1"), Proto: packet.TCP, Port: port, Toward: policy.End{Kind: policy.OwnPod, Name: "a/own"}}
		tables.Judge(&f, Asked{Begins: begins})
	}
	for port := range uint16(Most) {
		judge(port, true)
	}
	judge(0, true)
	judge(0, false)
	judge(Most, true) // in place of 1
	list := findings.List(tables)
	if len(list) != Most || list[0].Port != Most || list[1].Port != 0 || list[1].Begun != 2 || list[1].Standing != 1 || list[1].First != time.Unix(1, 0) {
		t.Errorf("%d findings, of which the first are %+v", len(list), list[:2])
	}
	for _, x := range list {
		if x.Port == 1 {
			t.Errorf("%+v is kept", x)
		}
	}
	if n := findings.Totals(); n != (Totals{WouldDeny: Most + 2, WouldCut: 1}) {
		t.Errorf("%+v", n)
	}
	if n := testing.AllocsPerRun(100, func() { judge(5, true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	config.Policies = []*policy.Policy{network("s", true)}
	if list := findings.List(c.Compile(config)); len(list) != 0 {
		t.Errorf("%d findings of another policy", len(list))
	}
}

// BenchmarkJudge judges a new flow with and without a staged policy.
func BenchmarkJudge(b *testing.B) {
	for name, list := range map[string][]*policy.Policy{
		"none staged": {network("e", false, "192.0.2.0/24")},
		"one staged":  {network("e", false, "192.0.2.0/24"), network("s", true, "192.0.2.0/24")},
		"found":       {network("s", true)},
	} {
		b.Run(name, func(b *testing.B) {
			tables := NewCompiler(NewFindings(time.Now)).Compile(policy.Config{Own: []*policy.Pod{{Namespace: "a", Name: "own"}}, Policies: list})
			f := policy.Flow{Src: at("192.0.2.7"), Dst: at("10.0.0.1"), Proto: packet.TCP, Port: 80, Toward: policy.End{Kind: policy.OwnPod, Name: "a/own"}}
			b.ReportAllocs()
			for b.Loop() {
				tables.Judge(&f, Asked{Begins: true})
			}
		})
	}
}

// TestCounts: flows that begin are counted with the policy that decides, or would if it is staged. A policy that
// changes is counted anew, and others go on.
func TestCounts(t *testing.T) {
	c := NewCompiler(NewFindings(time.Now))
	config := policy.Config{Own: []*policy.Pod{{Namespace: "a", Name: "own"}}, Policies: []*policy.Policy{network("e", false, "192.0.2.0/24"), network("s", true, "198.51.100.0/24")}}
	check := func(generation uint64, want map[string][3]uint64) {
		t.Helper()
		tables := c.Compile(config)
		for _, src := range []string{"192.0.2.7", "198.51.100.7", "203.0.113.7"} {
			f := policy.Flow{Src: at(src), Dst: at("10.0.0.1"), Proto: packet.TCP, Port: 80, Toward: policy.End{Kind: policy.OwnPod, Name: "a/own"}}
			tables.Judge(&f, Asked{Begins: true})
			tables.Judge(&f, Asked{})
		}
		got := map[string][3]uint64{}
		for one, s := range tables.Policies() {
			got[one.String()] = [3]uint64{s.Since, s.Permitted(), s.Denied()}
		}
		if !maps.Equal(got, want) || tables.Generation != generation {
			t.Errorf("generation %d: %v; want %d: %v", tables.Generation, got, generation, want)
		}
	}
	check(1, map[string][3]uint64{"NetworkPolicy a/e": {1, 1, 2}, "NetworkPolicy a/s": {1, 1, 0}})
	config.Own = append(config.Own, &policy.Pod{Namespace: "b", Name: "own"})
	check(2, map[string][3]uint64{"NetworkPolicy a/e": {1, 2, 4}, "NetworkPolicy a/s": {1, 2, 0}})
	config.Policies = []*policy.Policy{config.Policies[0], network("s", false, "203.0.113.0/24")}
	check(3, map[string][3]uint64{"NetworkPolicy a/e": {1, 3, 5}, "NetworkPolicy a/s": {3, 1, 0}})
}
