// Package policies turns NetworkPolicies, ClusterNetworkPolicies, Namespaces and Pods into the policy.Config of a node.
// It is pure, and part of package translate's work. docs/decisions/0015-policy.md says who is who.
//
// What cannot be understood permits nobody, and is told as a Problem: a range, a port, a selector of the other end. A
// policy whose own selector cannot be understood isolates its whole namespace and permits nobody. The rest of a policy
// stays in force. What exceeds policy.Most in a namespace permits nobody, either.
//
// Of ClusterNetworkPolicies, what cannot be understood denies: see closesRule.
package policies
