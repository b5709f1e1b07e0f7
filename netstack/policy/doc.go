// Package policy says who may talk to whom: it compiles NetworkPolicies, the policies of the cluster (package tiers),
// and the cluster's pods, into a Table that judges flows. It is pure: it knows no packets, no Kubernetes and no clock.
// docs/decisions/0015-policy.md says who asks it, when, and what becomes of the answer.
//
// # What is judged
//
// A pod that no policy selects for a direction may do everything in that direction. One that policies select for it may
// do what a rule of one of them permits, and nothing else. Rules only permit, so their order means nothing. A flow
// needs the egress of the pod that begins it and the ingress of the pod that it goes to. A Table judges the egress and
// the ingress of its own node's pods. Those of others are judged by their nodes, but where Flow.Both or Flow.Steered
// asks for it.
//
// The policies of the cluster come before that, and after it where no NetworkPolicy selects the pod: a standing is all
// that is said of a pod in one direction.
//
// # How it is compiled
//
// All rules of the policies of one namespace are one Law (package law): a realm. A side is the set of the rules that a
// pod has by the policies' own selectors. Judge permits what one rule of the side is for. So a namespace is compiled
// once, whatever its pods are, and a pod costs two sets.
//
// A namespace is compiled when the first pod of this node needs it, and its groups with it. For a pod of another node
// that is when it is judged here for the first time.
//
// # What a change costs
//
// A Table never changes. Compile makes the next one, which shares with it what is the same. A pod that changes costs
// its own group, at most. A policy that changes costs its namespace. Groups that are gone are forgotten, by numbering
// all anew, when they are more than half of what there is.
//
// # What it may cost
//
// Most bounds what the policies of one namespace cost, and tiers.Most what those of the cluster do. Who makes Configs
// leaves out what exceeds it.
//
// # What is only watched
//
// A Compiler has all policies judge that it is given, staged ones as well. Package audit gives it the right ones.
package policy
