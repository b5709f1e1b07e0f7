package explain

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/audit"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     Question
		err      string
	}{
		{"shop/till", "shop/db:5432", Question{"shop/till", "shop/db", packet.TCP, 5432}, ""},
		{"till", "db:53/udp", Question{"default/till", "default/db", packet.UDP, 53}, ""},
		{"10.0.0.1", "[fd00::1]:80/SCTP", Question{"10.0.0.1", "fd00::1", packet.SCTP, 80}, ""},
		{"fd00::2", "192.0.2.1:80", Question{"fd00::2", "192.0.2.1", packet.TCP, 80}, ""},
		{"a", "b", Question{}, "has no port"},
		{"a", "b:http", Question{}, `"http" is no port`},
		{"a", "b:0", Question{}, `"0" is no port`},
		{"a", "b:65536", Question{}, "is no port"},
		{"a", "b:80/ICMP", Question{}, `"ICMP" is no protocol with ports`},
	} {
		got, err := Parse(c.from, c.to)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s, %s: %v, want %q", c.from, c.to, err, c.err)
			}
		case err != nil || got != c.want:
			t.Errorf("%s, %s: %+v, %v; want %+v", c.from, c.to, got, err, c.want)
		}
	}
}

func app(name string) law.Labels { return law.Labels{{Key: "app", Value: name}} }

func named(name string) law.Selector {
	return law.Selector{{Key: "app", Op: law.In, Values: []string{name}}}
}

// shop is a node with the pods till and db, a pod away on another node, and policies: db takes connections from till
// alone, till sends none to away's port 1, and a staged one closes away.
func shop() *Node {
	pod := func(name, node, addr string) *policy.Pod {
		return &policy.Pod{Namespace: "shop", Name: name, Node: node, Labels: app(name), Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	port := func(n uint16) []law.Ports { return []law.Ports{{Proto: packet.TCP, First: n, Last: n}} }
	young := pod("young", "n1", "10.0.0.9")
	young.Addrs = nil
	c := &policy.Config{
		Policies: []*policy.Policy{
			{Namespace: "shop", Name: "away", Pods: named("away"), Staged: true, Ingress: policy.Rules{Isolates: true}},
			{Namespace: "shop", Name: "db", Pods: named("db"), Ingress: policy.Rules{Isolates: true, List: []law.Rule{{AnyPort: true, Parties: []law.Party{{Pods: named("till")}}}}}},
		},
		Cluster: []*tiers.Policy{{Name: "lock", Pods: named("till"), Egress: []tiers.Rule{
			{Action: tiers.Deny, Rule: law.Rule{Ports: port(1), Parties: []law.Party{{Namespaces: &law.Selector{}}}}},
		}}},
		Namespaces: []*policy.Namespace{{Name: "shop"}},
		Own:        []*policy.Pod{pod("db", "n1", "10.0.0.1"), pod("till", "n1", "10.0.0.2"), young},
		Others:     roll.Of(pod("away", "n2", "10.0.1.1")),
		Nodes:      []policy.Node{{Name: "n1", Pods: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}, {Name: "n2", Pods: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}},
	}
	return &Node{Config: c, Tables: audit.NewCompiler(audit.NewFindings(time.Now)).Compile(*c), At: func(a netip.Addr) policy.End {
		for _, p := range c.Own {
			if len(p.Addrs) > 0 && p.Addrs[0] == a {
				return policy.End{Kind: policy.OwnPod, Name: "shop/" + p.Name}
			}
		}
		if netip.MustParsePrefix("10.0.0.0/16").Contains(a) {
			return policy.End{Kind: policy.InCluster}
		}
		return policy.End{}
	}}
}

// TestAsk: for each question, the rules that decide, and what would have to change.
func TestAsk(t *testing.T) {
	for _, c := range []struct {
		from, to        string
		egress, ingress string // verdict and rule of each direction, and what would have to change
		staged          policy.Verdict
	}{
		{"shop/till", "shop/db:80", "permitted", "permitted NetworkPolicy shop/db ingress[0]", policy.Permit},
		{"10.0.0.2", "10.0.0.1:80", "permitted", "permitted NetworkPolicy shop/db ingress[0]", policy.Permit},
		{"shop/away", "shop/db:80", "permitted", "denied NetworkPolicy shop/db ingress: no rule permits it: add one for shop/away, port 80/TCP, to spec.ingress of NetworkPolicy shop/db", policy.Deny},
		{"192.0.2.1", "shop/db:80/UDP", "permitted", "denied NetworkPolicy shop/db ingress: no rule permits it: add one for 192.0.2.1, port 80/UDP, to spec.ingress of NetworkPolicy shop/db", policy.Deny},
		{"shop/till", "shop/away:1", "dropped ClusterNetworkPolicy lock egress[0]: ClusterNetworkPolicy lock egress[0] denies it: change that rule, or let a rule that comes before it Accept it, or Pass it", "permitted", policy.Drop},
		{"shop/till", "shop/away:2", "permitted", "permitted", policy.Deny},
		{"shop/till", "10.0.1.77:2", "permitted", "not decided yet: this node does not know yet who is at the other end, or the labels of its Namespace", policy.Unknown},
		{"shop/db", "192.0.2.1:80", "permitted", "permitted", policy.Permit},
	} {
		n := shop()
		q, err := Parse(c.from, c.to)
		if err != nil {
			t.Fatal(err)
		}
		a, err := n.Ask(q)
		if err != nil {
			t.Fatal(err)
		}
		say := func(d *policy.Direction, egress bool) string {
			rule := n.Tables.InForce.Describe(d.Rule)
			text := strings.TrimSpace(Verdict(d.Verdict) + " " + rule)
			if change := Change(d, egress, &q, rule); change != "" {
				text += ": " + change
			}
			return text
		}
		if got := say(&a.Now.Egress, true); got != c.egress {
			t.Errorf("%s -> %s: egress %q, want %q", c.from, c.to, got, c.egress)
		}
		if got := say(&a.Now.Ingress, false); got != c.ingress {
			t.Errorf("%s -> %s: ingress %q, want %q", c.from, c.to, got, c.ingress)
		}
		if a.Staged.Verdict != c.staged {
			t.Errorf("%s -> %s: %d with the staged policies, want %d", c.from, c.to, a.Staged.Verdict, c.staged)
		}
	}
	for want, q := range map[string]Question{
		"knows no pod shop/x":             {From: "shop/x", To: "shop/db"},
		"pod shop/young has no address":   {From: "shop/young", To: "shop/db"},
		"have no addresses of one family": {From: "fd00::1", To: "shop/db"},
	} {
		if _, err := shop().Ask(q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	if _, err := (&Node{}).Ask(Question{}); err != errNone {
		t.Errorf("without policies: %v", err)
	}
}
