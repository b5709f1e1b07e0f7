package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/roll"
)

// large returns a Config with n policies that all select each pod of this node, ten ranges and a selector of its own in
// each, and as many pods elsewhere as others says.
func large(n, others int) Config {
	var c Config
	for i := range n {
		p := &Policy{Namespace: "a", Name: fmt.Sprintf("p%05d", i)}
		rule := law.Rule{Ports: []law.Ports{{Proto: packet.TCP, First: uint16(1000 + i), Last: uint16(1000 + i)}, {Proto: packet.TCP, First: 443, Last: 443}}}
		rule.Parties = append(rule.Parties, law.Party{Pods: law.Selector{where("app", law.In, fmt.Sprint("app-", i))}})
		for j := range 10 {
			k := 10*i + j
			rule.Parties = append(rule.Parties, law.Party{Range: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(k >> 8), byte(k), 0}), 24),
				Except: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(k >> 8), byte(k), 8}), 29)}})
		}
		p.Ingress = Rules{true, []law.Rule{rule}}
		p.Egress = p.Ingress
		c.Policies = append(c.Policies, p)
	}
	for i := range 100 {
		c.Own = append(c.Own, &Pod{Namespace: "a", Name: fmt.Sprintf("own%03d", i), Labels: law.LabelsOf(map[string]string{"app": fmt.Sprint("app-", i)}), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}})
	}
	var list []*Pod
	for i := range others {
		list = append(list, otherPod(i, i%2000))
	}
	slices.SortFunc(list, (*Pod).compare)
	c.Others = roll.From(list)
	return c
}

func otherPod(i, app int) *Pod {
	return &Pod{Namespace: "a", Name: fmt.Sprintf("z%06d", i), Labels: law.LabelsOf(map[string]string{"app": fmt.Sprint("app-", app), "hash": fmt.Sprint(i)}),
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)})}}
}

// flowsOf are flows of each way that a Table decides.
var flowsOf = map[string]Flow{
	"by labels":    {Src: at("10.1.0.7"), Proto: packet.TCP, Port: 1007, Toward: End{Kind: OwnPod, Name: "a/own007"}},
	"by a range":   {Src: at("100.20.7.1"), Proto: packet.TCP, Port: 443, Toward: End{Kind: OwnPod, Name: "a/own007"}},
	"denied":       {Src: at("100.20.7.9"), Proto: packet.TCP, Port: 443, Toward: End{Kind: OwnPod, Name: "a/own007"}},
	"between pods": {Src: at("10.0.0.1"), Dst: at("10.0.0.7"), Proto: packet.TCP, Port: 443, From: End{Kind: OwnPod, Name: "a/own001"}, Toward: End{Kind: OwnPod, Name: "a/own007"}},
}

func at(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

// BenchmarkJudge judges a new flow where 1,000 policies with 10,000 ranges select the pod.
func BenchmarkJudge(b *testing.B) {
	c := large(1000, 10_000)
	table := new(Compiler).Compile(c)
	for name, f := range flowsOf {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Judge(&f)
			}
		})
	}
}

// BenchmarkElsewhere judges for a pod of another node, as Ingress asks.
func BenchmarkElsewhere(b *testing.B) {
	table := new(Compiler).Compile(large(1000, 10_000))
	f := Flow{Src: at("10.1.0.7"), Dst: at("10.1.0.8"), Proto: packet.TCP, Port: 1007, Both: true}
	b.ReportAllocs()
	for b.Loop() {
		table.Judge(&f)
	}
}

// BenchmarkCompile compiles 1,000 policies for a node.
func BenchmarkCompile(b *testing.B) {
	c := large(1000, 0)
	for b.Loop() {
		new(Compiler).Compile(c)
	}
}

// BenchmarkChange changes one pod among 100,000, a policy, or a pod of the node.
func BenchmarkChange(b *testing.B) {
	for name, change := range map[string]func(c *Config, n int){
		"other pod": func(c *Config, n int) { c.Others = c.Others.With(roll.Edit[*Pod]{At: 500, To: otherPod(500, n%2000)}) },
		"own pod": func(c *Config, n int) {
			c.Own = slices.Clone(c.Own)
			p := *c.Own[7]
			p.Labels = law.LabelsOf(map[string]string{"app": fmt.Sprint("app-", n%1000)})
			c.Own[7] = &p
		},
		"policy": func(c *Config, n int) {
			c.Policies = slices.Clone(c.Policies)
			p := *c.Policies[7]
			c.Policies[7] = &p
		},
	} {
		b.Run(name, func(b *testing.B) {
			c := large(1000, 100_000)
			var compiler Compiler
			compiler.Compile(c)
			n := 0
			for b.Loop() {
				n++
				change(&c, n)
				compiler.Compile(c)
			}
		})
	}
}

// TestJudgeAllocatesNothing, and answers as it should, with many policies.
func TestJudgeAllocatesNothing(t *testing.T) {
	table := new(Compiler).Compile(large(1000, 1000))
	for name, f := range flowsOf {
		want := Permit
		if name == "denied" {
			want = Deny
		}
		if got := table.Judge(&f); got.Verdict != want {
			t.Errorf("%s: %+v, which is %s", name, got, table.Describe(got.Rule))
		}
		if n := testing.AllocsPerRun(100, func() { table.Judge(&f) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
