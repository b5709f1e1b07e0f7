package tiers

import "tapestry.dev/tapestry/netstack/policy/law"

// Tier is a tier of policies.
type Tier uint8

// The tiers: NetworkPolicies come between them.
const (
	Admin Tier = iota
	Baseline
	count = iota
)

// Action is what a rule does with the flows that it is for.
type Action uint8

// The actions.
const (
	Pass   Action = iota // what comes after the tier decides
	Permit               // they may be, whatever comes after
	Deny                 // they may not, and nobody is told
)

// Policy is a ClusterNetworkPolicy. It is for the pods that Pods selects in the namespaces that Namespaces selects.
type Policy struct {
	Name             string
	Tier             Tier
	Priority         int32 // the smaller comes first
	Namespaces, Pods law.Selector
	// Staged is set when the policy is only watched; see package audit.
	Staged bool
	// Egress and Ingress have the rules of each direction in their order.
	Egress, Ingress []Rule
}

// Rule is a rule with its action. Its parties that are pods have Namespaces, since there is no namespace of its own.
type Rule struct {
	Action Action
	law.Rule
}

// rules returns the rules of one direction.
func (p *Policy) rules(egress bool) []Rule {
	if egress {
		return p.Egress
	}
	return p.Ingress
}

// Size returns the size of the policy's rules.
func (p *Policy) Size() (s law.Size) {
	for _, rules := range [...][]Rule{p.Egress, p.Ingress} {
		for i := range rules {
			s = s.Plus(rules[i].Size())
		}
	}
	return s
}

// Most is how large the policies of a cluster together may be: a tier of that size is compiled to 150 MB at most.
var Most = law.Size{Rules: 10_000, Selectors: 20_000, Ranges: 50_000, Ports: 10_000}
