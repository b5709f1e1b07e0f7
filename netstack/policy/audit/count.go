package audit

import (
	"iter"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// Count is how often a policy has decided about flows that began, or would have if it is staged. What no rule permits
// is denied by the first of the policies that isolate the pod.
type Count struct {
	// Since is the Generation in which the policy, as it is, was there first.
	Since uint64

	permitted, denied atomic.Uint64
}

// Permitted returns how many flows the policy has permitted.
func (c *Count) Permitted() uint64 { return c.permitted.Load() }

// Denied returns how many flows the policy has denied. One that tries again is counted again.
func (c *Count) Denied() uint64 { return c.denied.Load() }

// add counts a flow; nil counts nothing.
func (c *Count) add(v policy.Verdict) {
	switch {
	case c == nil:
	case v == policy.Permit:
		c.permitted.Add(1)
	default:
		c.denied.Add(1)
	}
}

// count gives t its Counts: those of the policies that go on, and new ones for others.
func (c *Compiler) count(t *Tables) {
	if last := c.last; last != nil && samePolicies(last.InForce, t.InForce) && samePolicies(last.Staged, t.Staged) {
		t.decided, t.would = last.decided, last.would
		return
	}
	counts := map[policy.One]*Count{}
	of := func(table *policy.Table, staged bool) map[law.ID]*Count {
		m := map[law.ID]*Count{}
		if table == nil {
			return m
		}
		for id, one := range table.Policies() {
			if one.Staged() != staged {
				continue
			}
			if counts[one] = c.counts[one]; counts[one] == nil {
				counts[one] = &Count{Since: t.Generation}
			}
			m[id] = counts[one]
		}
		return m
	}
	t.decided, t.would = of(t.InForce, false), of(t.Staged, true)
	c.counts = counts
}

// samePolicies reports whether two Tables, which may be nil, have the same policies by the same IDs.
func samePolicies(a, b *policy.Table) bool {
	return a == b || a != nil && b != nil && a.SamePolicies(b)
}

// State is how a policy fares: the Table that judges by it, and its Count.
type State struct {
	Table *policy.Table
	*Count
}

// Policies yields all policies, those in force before the staged ones. There are none of no Tables.
func (t *Tables) Policies() iter.Seq2[policy.One, State] {
	return func(yield func(policy.One, State) bool) {
		if t == nil {
			return
		}
		for _, part := range []struct {
			table  *policy.Table
			counts map[law.ID]*Count
		}{{t.InForce, t.decided}, {t.Staged, t.would}} {
			if part.table == nil {
				continue
			}
			for id, one := range part.table.Policies() {
				if count := part.counts[id]; count != nil && !yield(one, State{part.table, count}) {
					return
				}
			}
		}
	}
}
