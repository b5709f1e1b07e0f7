// Package share shares out a scarce resource: a fixed number of equal units, such as conversations, queries or
// connections, among owners who may each want all of them.
//
// # The rule
//
// A unit is charged to whoever began what the unit is used for. While units are free, whoever asks gets one, so no unit
// stays idle for the sake of fairness. When none is free, an owner who holds at least two fewer than the owner with the
// most takes a unit from that owner: the one that was not used for the longest time. Everybody else who asks replaces a
// unit of his own. An owner who holds nothing is refused only where nobody holds more than one. So owners who want
// little always get it, and owners who want much end up equal (max-min fairness). A unit moves only where that makes
// shares more equal: two owners never take the same unit from each other in turn.
//
// The node's own work has a reserve: so many units are not charged to it, and it gets them even when others hold them.
// Beyond the reserve the node is an owner like the others.
//
// Some uses of a unit cannot be ended early. A Limit with Keep takes nothing away: it lets an owner hold no more units
// than are free at that time, and leaves the reserve free for the node. The first greedy owner then leaves half of all
// units to others, the second half of the rest. As units are released, the shares become equal: n greedy owners hold
// 1/(n+1) of the units each, and as much stays free.
//
// Who must wait for a unit waits in a Line, which calls the owners in turn. Where goroutines of many owners share the
// processors, Rounds does so for these. Where each thing that is begun costs much, a Lobby lets an owner begin a few at
// once, and more at a pace.
//
// # Choosing an owner
//
// An owner must be something that one cannot easily have many of: a pod's attachment, a peer, a prefix of outside
// addresses. A pod whose every port counted as an owner would be as many owners as it likes.
//
// # Cost
//
// Acquire and Release take O(log n) for n owners who hold something, Touch O(1). All of them take a mutex, so they are
// for things that begin and end, not for every packet. None allocates, except when there are more owners than ever
// before. Decide and Ranking are the rule alone, for tables that keep their units in their own way.
package share
