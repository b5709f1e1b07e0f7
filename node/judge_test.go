package node

import (
	"cmp"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/audit"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// TestJudge: the packet path hears what policies say, in its own words, and nothing is allocated for that. A connection
// that changes its source on the way is judged for the pod of another node, too.
func TestJudge(t *testing.T) {
	named := func(name string) law.Labels { return law.Labels{{Key: "name", Value: name}} }
	addr := func(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }
	closed := policy.Rules{Isolates: true}
	c := audit.NewCompiler(nil)
	j := judge{c.Compile(policy.Config{
		Policies: []*policy.Policy{
			{Namespace: "a", Name: "far", Pods: law.Selector{{Key: "name", Op: law.In, Values: []string{"far"}}}, Ingress: closed},
			{Namespace: "a", Name: "own", Pods: law.Selector{{Key: "name", Op: law.In, Values: []string{"own"}}}, Egress: closed},
			{Namespace: "c", Name: "all", Ingress: closed},
			{Namespace: "d", Name: "all", Egress: closed},
		},
		Own: []*policy.Pod{{Namespace: "a", Name: "own", UID: "1", Labels: named("own")}, {Namespace: "b", Name: "own"}, {Namespace: "c", Name: "own"}},
		Others: roll.Of(
			&policy.Pod{Namespace: "a", Name: "far", Labels: named("far"), Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.3")}},
			&policy.Pod{Namespace: "a", Name: "liar", Node: "n3", Labels: named("far"), Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.7")}},
			&policy.Pod{Namespace: "b", Name: "one", Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.5")}},
			&policy.Pod{Namespace: "b", Name: "two", Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.5")}},
			&policy.Pod{Namespace: "b", Name: "robbed", Node: "n2", Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.7")}},
			&policy.Pod{Namespace: "d", Name: "far", Addrs: []netip.Addr{netip.MustParseAddr("10.244.2.6")}},
		),
		Nodes: []policy.Node{{Name: "n2", Pods: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Agent: []netip.Addr{netip.MustParseAddr("10.244.2.1"), netip.MustParseAddr("10.244.3.1")}}},
	})}
	for name, x := range map[string]struct {
		from, toward netstack.End
		src, to      string // as it arrived, and as it leaves
		dst          string // "" for the pod of another node
		want         netstack.Action
		backend      uint64 // not 0: it was steered
	}{
		"a pod that is closed":          {netstack.End{Kind: netstack.Pod, Attachment: "a/own"}, netstack.End{Kind: netstack.Outside}, "10.244.1.3", "10.244.1.3", "", netstack.Refuse, 0},
		"a pod that is not known":       {netstack.End{Kind: netstack.Pod, Attachment: "a/young"}, netstack.End{Kind: netstack.Outside}, "10.244.1.4", "10.244.1.4", "", netstack.Drop, 0},
		"a pod that was made anew":      {netstack.End{Kind: netstack.Pod, Attachment: "a/own", UID: "2"}, netstack.End{Kind: netstack.Outside}, "10.244.1.3", "10.244.1.3", "", netstack.Drop, 0},
		"a pod that is the same":        {netstack.End{Kind: netstack.Pod, Attachment: "a/own", UID: "1"}, netstack.End{Kind: netstack.Outside}, "10.244.1.3", "10.244.1.3", "", netstack.Refuse, 0},
		"a pod of another namespace":    {netstack.End{Kind: netstack.Pod, Attachment: "b/young"}, netstack.End{Kind: netstack.OtherNode}, "10.244.1.4", "10.244.1.4", "", netstack.Permit, 0},
		"to a node that judges":         {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.3", "10.244.3.3", "", netstack.Permit, 0},
		"steered":                       {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.3", "10.244.1.1", "", netstack.Refuse, 0},
		"steered, of a client outside":  {netstack.End{Kind: netstack.Outside, Peer: 7}, netstack.End{Kind: netstack.OtherNode}, "192.0.2.77", "10.244.1.1", "", netstack.Refuse, 0},
		"steered, to an unknown pod":    {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.3", "10.244.1.1", "10.244.2.4", netstack.Drop, 0},
		"to an unknown pod":             {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.3", "10.244.3.3", "10.244.2.4", netstack.Permit, 0},
		"steered, to an address of two": {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.3", "10.244.1.1", "10.244.2.5", netstack.Drop, 0},
		"steered, to an address that a pod of another node claims": {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.3", "10.244.1.1", "10.244.2.7", netstack.Permit, 0},
		"masked, to a node":                  {netstack.End{Kind: netstack.Outside}, netstack.End{Kind: netstack.OtherNode}, "192.0.2.77", "10.244.1.1", "192.0.2.2", netstack.Permit, 0},
		"masked, to the outside":             {netstack.End{Kind: netstack.Pod, Attachment: "b/young"}, netstack.End{Kind: netstack.Outside}, "10.244.1.4", "192.0.2.1", "198.51.100.1", netstack.Permit, 0},
		"the egress of a pod elsewhere":      {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.Pod, Attachment: "b/own"}, "10.244.2.6", "10.244.2.6", "10.244.1.5", netstack.Permit, 0},
		"the same, steered":                  {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.Pod, Attachment: "b/own"}, "10.244.2.6", "10.244.2.6", "10.244.1.5", netstack.Refuse, 1},
		"by an agent, to a pod for all":      {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.Pod, Attachment: "b/own"}, "10.244.2.1", "10.244.2.1", "10.244.1.5", netstack.Permit, 1},
		"by an agent, to a pod for some":     {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.Pod, Attachment: "c/own"}, "10.244.2.1", "10.244.2.1", "10.244.1.6", netstack.Refuse, 1},
		"the same, where its client was led": {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.Pod, Attachment: "c/own"}, "10.244.2.1", "10.244.2.1", "10.244.1.6", netstack.Permit, 0},
		"by an agent, to a pod elsewhere":    {netstack.End{Kind: netstack.OtherNode}, netstack.End{Kind: netstack.OtherNode}, "10.244.3.1", "10.244.1.1", "", netstack.Refuse, 1},
	} {
		f := netstack.Flow{From: x.from, Toward: x.toward, Backend: x.backend}
		f.Orig = packet.Tuple{Src: addr(x.src), Dst: addr(cmp.Or(x.dst, "10.244.2.3")), DstPort: 80, Proto: packet.TCP}
		f.To = f.Orig
		f.To.Src = addr(x.to)
		if got := j.Judge(&f); got.Action != x.want {
			t.Errorf("%s: %+v, want %d", name, got, x.want)
		}
		if n := testing.AllocsPerRun(100, func() { j.Judge(&f) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestDenyOfTheCluster: whom a policy of the cluster denies something hears nothing of it, and the rule is known.
func TestDenyOfTheCluster(t *testing.T) {
	deny := tiers.Rule{Action: tiers.Deny, Rule: law.Rule{Everybody: true, Ports: []law.Ports{{Proto: packet.TCP, First: 80, Last: 80}}}}
	tables := audit.NewCompiler(nil).Compile(policy.Config{
		Cluster: []*tiers.Policy{{Name: "lockdown", Egress: []tiers.Rule{deny}}}, Own: []*policy.Pod{{Namespace: "a", Name: "own"}},
	})
	f := netstack.Flow{From: netstack.End{Kind: netstack.Pod, Attachment: "a/own"}, Toward: netstack.End{Kind: netstack.Outside}}
	f.Orig = packet.Tuple{Src: packet.AddrFrom(netip.MustParseAddr("10.244.1.3")), Dst: packet.AddrFrom(netip.MustParseAddr("192.0.2.77")), DstPort: 80, Proto: packet.TCP}
	f.To = f.Orig
	if got := (judge{tables}).Judge(&f); got.Action != netstack.Drop || tables.InForce.Describe(got.Rule) != "ClusterNetworkPolicy lockdown egress[0]" {
		t.Errorf("%+v by %q", got, tables.InForce.Describe(got.Rule))
	}
	f.Orig.DstPort, f.To.DstPort = 81, 81
	if got := (judge{tables}).Judge(&f); got != (netstack.Ruling{}) {
		t.Errorf("another port: %+v", got)
	}
}
