package audit

import (
	"maps"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// Tables judge flows. They never change, and their methods are safe for concurrent use.
type Tables struct {
	// InForce decides; nil permits everything. Staged says what would be if the staged policies were in force too; nil
	// if there are none.
	InForce, Staged *policy.Table
	policies        map[law.ID]policy.One // those of Staged
	findings        *Findings
	// Generation numbers the Tables of a Compiler, from 1 on.
	Generation uint64
	// decided counts by the policies of InForce, and would by those of Staged that are staged.
	decided, would map[law.ID]*Count
}

// Compiler compiles successive Configs. Its Findings outlive its Tables. Make it with NewCompiler. It is not safe for
// concurrent use.
type Compiler struct {
	inForce, staged policy.Compiler
	last            *Tables
	findings        *Findings
	generation      uint64
	counts          map[policy.One]*Count
}

// NewCompiler returns a Compiler whose Tables write down what they find.
func NewCompiler(f *Findings) *Compiler { return &Compiler{findings: f} }

// Compile returns the Tables of a Config: the same ones as before if those judge the same, and nil where there are no
// policies at all.
func (c *Compiler) Compile(config policy.Config) *Tables {
	inForce := config
	inForce.Policies = without(config.Policies, func(p *policy.Policy) bool { return p.Staged })
	inForce.Cluster = without(config.Cluster, func(p *tiers.Policy) bool { return p.Staged })
	t := &Tables{InForce: c.inForce.Compile(inForce), findings: c.findings}
	if len(inForce.Policies) < len(config.Policies) || len(inForce.Cluster) < len(config.Cluster) {
		t.Staged = c.staged.Compile(config)
	} else {
		c.staged = policy.Compiler{}
	}
	switch last := c.last; {
	case t.InForce == nil && t.Staged == nil:
		c.last, c.counts = nil, nil
		return nil
	case last != nil && last.InForce == t.InForce && last.Staged == t.Staged:
		return last
	case t.Staged != nil:
		t.policies = maps.Collect(t.Staged.Policies())
	}
	c.generation++
	t.Generation = c.generation
	c.count(t)
	c.last = t
	return t
}

// without returns a list without its staged elements: the list itself if there are none.
func without[T any](list []T, staged func(T) bool) []T {
	if !slices.ContainsFunc(list, staged) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), staged)
}

// Asked says what somebody wants to know of a flow.
type Asked struct {
	// Begins is set when the flow is new. Otherwise it has been permitted before, by other Tables.
	Begins bool
	// Ingress asks as policy.Table.JudgeIngress does.
	Ingress bool
}

// Judge says whether a flow may be, by the policies that are in force, and writes down how it would fare otherwise. It
// does what policy.Table.Judge says of itself. f is borrowed.
func (t *Tables) Judge(f *policy.Flow, a Asked) policy.Ruling {
	now := judge(t.InForce, f, a)
	if a.Begins && now.Rule != 0 {
		t.decided[law.ID(now.Rule).Policy()].add(now.Verdict)
	}
	if t.Staged == nil {
		return now
	}
	would := judge(t.Staged, f, a)
	if a.Begins && would.Rule != 0 {
		t.would[law.ID(would.Rule).Policy()].add(would.Verdict)
	}
	if now.Verdict != policy.Unknown && would.Verdict != policy.Unknown && (now.Verdict == policy.Permit) != (would.Verdict == policy.Permit) {
		t.findings.add(f, would, t.policies[law.ID(would.Rule).Policy()], a.Begins)
	}
	return now
}

func judge(t *policy.Table, f *policy.Flow, a Asked) policy.Ruling {
	switch {
	case t == nil:
		return policy.Ruling{}
	case a.Ingress:
		return t.JudgeIngress(f)
	}
	return t.Judge(f)
}

// Describe says which rule in force decided, as policy.Table.Describe does.
func (t *Tables) Describe(rule uint64) string {
	if t.InForce == nil {
		return ""
	}
	return t.InForce.Describe(rule)
}

// IsNode reports whether an address is a node's own.
func (t *Tables) IsNode(a packet.Addr) bool {
	if t.InForce != nil {
		return t.InForce.IsNode(a)
	}
	return t.Staged.IsNode(a)
}
