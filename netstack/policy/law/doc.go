// Package law is what rules about the other ends of flows, and about ports, are compiled to. It knows neither what a
// rule does nor whom it is for: packages policy and tiers do.
//
// # How it is compiled
//
//	Rules ─┬─ ports ──> intervals, each with the rules for it ──┐
//	       ├─ ranges ─> intervals, each with the rules for it ──┼─> Law
//	       └─ selectors of other ends ──────────────────────────┘
//	Pods with equal labels: a group ── with the Law: the rules that name it ── Reading
//
// Rules have numbers, in the order in which they are given, and everything comes to sets of bits by these numbers. For
// a flow, First finds the rules for the port, those that name the other end's group, and those that name its address.
// The first rule that is for the flow by its port, and by its group or address, is the first bit of an intersection.
//
// A group is looked at by what selectors mention: groups that differ in other labels, or in values that no selector
// mentions, have one answer.
//
// A namespace that is not known may have any labels besides its name. So what names its pods by the namespace's labels
// must select it whatever they are.
//
// # What it may cost
//
// With r rules, n ranges and ports, p selectors and g groups that these tell from each other, a Law costs r·n/4 bytes
// at most, and a Reading time for g·p comparisons. A Size has r, n and p.
package law
