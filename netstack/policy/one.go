package policy

import (
	"iter"

	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// One is one policy of a Table: either Network or Cluster is set.
type One struct {
	Network *Policy
	Cluster *tiers.Policy
}

// Staged reports whether the policy is only watched.
func (o One) Staged() bool {
	return o.Network != nil && o.Network.Staged || o.Cluster != nil && o.Cluster.Staged
}

// String returns the policy's kind and name, as "NetworkPolicy shop/web"; "" for none.
func (o One) String() string {
	switch {
	case o.Network != nil:
		return "NetworkPolicy " + o.Network.Namespace + "/" + o.Network.Name
	case o.Cluster != nil:
		return "ClusterNetworkPolicy " + o.Cluster.Name
	}
	return ""
}

// Policies yields all policies with their IDs, as law.ID.Policy has them of a Ruling's rule. Those of the cluster are
// the last.
func (t *Table) Policies() iter.Seq2[law.ID, One] {
	return func(yield func(law.ID, One) bool) {
		for _, p := range t.policies.list {
			if !yield(law.IDOf(t.policies.serials[p], false, true, -1).Policy(), One{Network: p}) {
				return
			}
		}
		for id, p := range t.tiers.All() {
			if !yield(id, One{Cluster: p}) {
				return
			}
		}
	}
}

// SamePolicies reports whether two successive Tables of a Compiler have the same policies with the same IDs.
func (t *Table) SamePolicies(u *Table) bool { return t.policies == u.policies && t.tiers == u.tiers }

// Describe says which rule of which policy decided, as "NetworkPolicy shop/web ingress[0]"; "" for none.
func (t *Table) Describe(rule uint64) string {
	for id, one := range t.Policies() {
		if id == law.ID(rule).Policy() {
			return one.String() + " " + law.ID(rule).String()
		}
	}
	return ""
}
