package policy_test

import (
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/audit"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// FuzzStaged compares what package audit says, of random policies of which some are staged, with the slow twin: what is
// in force is what would be without the staged ones, and a finding is where that differs from what would be with them.
func FuzzStaged(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r, findings := policy.NewRandom(seed), audit.NewFindings(time.Now)
		compiler := audit.NewCompiler(findings)
		found := 0
		for range 12 {
			r.Next()
			tables := compiler.Compile(r.Config)
			if compiler.Compile(r.Config) != tables {
				t.Fatal("the same Config has other Tables")
			}
			inForce := r.Config
			inForce.Policies = slices.DeleteFunc(slices.Clone(inForce.Policies), func(p *policy.Policy) bool { return p.Staged })
			inForce.Cluster = slices.DeleteFunc(slices.Clone(inForce.Cluster), func(p *tiers.Policy) bool { return p.Staged })
			for range 60 {
				f := r.Flow()
				now, would := policy.Slow(&inForce, &f), policy.Slow(&r.Config, &f)
				got := policy.Permit
				if tables != nil {
					got = tables.Judge(&f, audit.Asked{Begins: true}).Verdict
				}
				if got != now {
					t.Fatalf("%+v: %d, want %d", f, got, now)
				}
				if now != policy.Unknown && would != policy.Unknown && (now == policy.Permit) != (would == policy.Permit) {
					found++
				}
				if n := findings.Totals(); n.WouldPermit+n.WouldDeny != uint64(found) || n.WouldCut != 0 {
					t.Fatalf("%+v, which is %d and would be %d: %+v found, want %d", f, now, would, n, found)
				}
			}
		}
	})
}
