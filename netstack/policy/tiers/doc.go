// Package tiers is the policies of a cluster, ClusterNetworkPolicies, compiled to what judges flows. Its user, package
// policy, joins them with NetworkPolicies.
//
// # In which order
//
// For each direction of a flow, the tier Admin is asked first, then the NetworkPolicies of the pod's namespace if any
// selects the pod, and otherwise the tier Baseline. In a tier, the first rule that is for the flow decides: rules of
// policies with smaller priority are before those of others, policies of one priority are in order of their names, and
// the rules of a policy in the order in which they are written. Accept and Deny are final; Pass goes on with what comes
// after the tier, and so does what no rule is for. So nobody is isolated by a policy of the cluster: what none forbids
// goes on.
//
// # How it is compiled
//
// All rules of a tier are one Law (package law), in which their numbers are their precedence. A pod has the set of
// those that are for it, and the first bit of one intersection is the rule that decides.
//
// # What is not known
//
// Rules do not only permit, so that whoever is not known cannot be taken for somebody whom no rule names: a Deny would
// not be for him. Where a rule comes first that names pods, and may be for him, nothing is decided, and the flow waits
// until it is known who he is. Of a pod whose namespace is not known that is where the namespace's labels matter. Such
// a pod is itself not known as long as a policy may be for it, or not.
package tiers
