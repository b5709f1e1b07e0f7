package policy

import (
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// FuzzExplain: what Explain says is what Judge says, and what the slow twin does; its directions together are the
// verdict; and the policies that it names are those that the twin looks at.
func FuzzExplain(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := NewRandom(seed)
		var compiler Compiler
		for range 12 {
			r.Next()
			table := compiler.Compile(r.Config)
			if table == nil {
				continue
			}
			for range 60 {
				f := r.Flow()
				e, want := table.Explain(&f), table.Judge(&f)
				if e.Ruling != want || e.Verdict != slow(&r.Config, &f) {
					t.Fatalf("%+v is explained as %+v, judged %+v, and %d by the twin", f, e, want, slow(&r.Config, &f))
				}
				joined := e.Egress.Ruling
				if joined.Verdict == Permit && e.Ingress.Ruling != (Ruling{}) {
					joined = e.Ingress.Ruling
				}
				if joined != want {
					t.Fatalf("%+v: the directions %+v and %+v do not make %+v", f, e.Egress, e.Ingress, want)
				}
				checkSelecting(t, &r.Config, &e.Egress, true)
				checkSelecting(t, &r.Config, &e.Ingress, false)
			}
		}
	})
}

// checkSelecting compares the policies that an explanation names with those that the twin finds, and the rule that
// decides with them.
func checkSelecting(t *testing.T, c *Config, d *Direction, egress bool) {
	t.Helper()
	if d.Pod == nil {
		if d.Verdict == Drop || len(d.Policies) > 0 {
			t.Fatalf("%+v of no pod", d)
		}
		return
	}
	var want []One
	for _, p := range c.Policies {
		rules := &p.Ingress
		if egress {
			rules = &p.Egress
		}
		if p.Namespace == d.Pod.Namespace && rules.Isolates && p.Pods.Matches(d.Pod.Labels) && !d.Pod.Vague {
			want = append(want, One{Network: p})
		}
	}
	for _, p := range c.Cluster {
		if selects, _ := slowSubject(c, p, egress, d.Pod); selects && !d.Pod.Vague {
			want = append(want, One{Cluster: p})
		}
	}
	if !slices.Equal(d.Policies, want) {
		t.Fatalf("%s/%s is selected by %v, want %v", d.Pod.Namespace, d.Pod.Name, d.Policies, want)
	}
	if len(want) == 0 && d.Verdict != Permit && !d.Pod.Vague {
		t.Fatalf("%+v, and nothing selects the pod", d.Ruling)
	}
}

// TestSelected counts the pods of this node that a policy selects, for either direction.
func TestSelected(t *testing.T) {
	p := own("a", "x")
	p.Node = "n1"
	q := own("b", "y")
	q.Node = "n1"
	egress := &tiers.Policy{Name: "c", Egress: []tiers.Rule{{}}}
	only := one()
	table := new(Compiler).Compile(Config{
		Policies: []*Policy{only}, Cluster: []*tiers.Policy{egress, {Name: "d"}}, Namespaces: []*Namespace{{"a", nil}, {"b", nil}},
		Own: []*Pod{p, q, own("kube-system", "(cluster DNS)")},
	})
	got := map[string]int{}
	for _, policy := range table.Policies() {
		got[policy.String()] = table.Selected(policy)
	}
	if got["NetworkPolicy a/p"] != 1 || got["ClusterNetworkPolicy c"] != 2 || got["ClusterNetworkPolicy d"] != 0 {
		t.Errorf("%v", got)
	}
}
