// Package audit judges flows by the policies that are in force, and says how those fare that staged policies would
// judge otherwise. A staged policy is judged, counted and told, and not enforced.
//
// # What would be
//
// There are two Tables. That in force is compiled without any staged policy, so none can permit, deny or isolate
// anything, not even by its existence. The other one is compiled of all policies together, as if all staged ones were
// enforced at once beside those that are. So a staged policy changes what would be just as it will when its annotation
// goes: it isolates pods, permits what others do not, and comes in its tier before others and after others. What
// several staged ones would do is what they would do together; to see one alone, stage it alone.
//
// Both Tables judge a flow, by the same code. A flow is a Finding if one permits it and the other does not. It is none
// while a pod is not known to one of the two: nothing is decided yet. By which rule is what the second Table says,
// which may be a rule that is in force: one to which a staged Pass leaves the flow, or that a staged policy no longer
// precedes.
//
// # What it costs
//
// Where nothing is staged there is one Table, and a flow costs one comparison with nil. Otherwise a flow is judged
// twice, the Tables take twice the memory, and a change of a pod twice the time. Only Findings are written down.
package audit
