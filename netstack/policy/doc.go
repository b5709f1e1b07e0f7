// Package policy says who may talk to whom: it compiles NetworkPolicies, and the pods of the cluster, into a Table that
// judges flows. It is pure: it knows no packets, no Kubernetes and no clock. docs/decisions/0015-policy.md says who
// asks it, when, and what becomes of the answer.
//
// # What is judged
//
// A pod that no policy selects for a direction may do everything in that direction. One that policies select for it may
// do what a rule of one of them permits, and nothing else. Rules only permit, so their order means nothing. A flow
// needs the egress of the pod that begins it and the ingress of the pod that it goes to. A Table judges the egress and
// the ingress of its own node's pods. Those of others are judged by their nodes, but where Flow.Both or Flow.Steered
// asks for it.
//
// # How it is compiled
//
//	Policies of a namespace ─┬─ ports ──> intervals, each with the rules for it ──┐
//	                         ├─ ranges ─> intervals, each with the rules for it ──┼─> law
//	                         └─ selectors of other ends ──────────────────────────┘
//	Pods with equal labels: a group ── with the law: the rules that name it ───────── realm
//	A pod's labels ── with the policies' own selectors: the rules that it has ─────── side
//
// All rules of the policies of one namespace have numbers, and everything comes to sets of bits by these numbers. For a
// flow, Judge finds the rules for the port, those that name the other end's group, and those that name its address. It
// permits what one rule of the side is for by its port, and by its group or address. So a namespace is compiled once,
// whatever its pods are, and a pod costs two sets.
//
// A namespace is compiled when the first pod of this node needs it, and its groups with it. For a pod of another node
// that is when it is judged here for the first time. A group is looked at by what selectors mention: groups that differ
// in other labels, or in values that no selector mentions, have one answer.
//
// A namespace that is not known may have any labels besides its name. So what names its pods by namespaceSelector must
// select it whatever they are.
//
// # What a change costs
//
// A Table never changes. Compile makes the next one, which shares with it what is the same. A pod that changes costs
// its own group, at most. A policy that changes costs its namespace. Groups that are gone are forgotten, by numbering
// all anew, when they are more than half of what there is.
//
// # What it may cost
//
// With r rules, n ranges and ports, p selectors and g groups that these tell from each other, a namespace costs r·n/4
// bytes at most, and time for g·p comparisons. Most bounds r, n and p. Who makes Configs leaves out what exceeds it.
package policy
