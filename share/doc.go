// Package share shares out what is scarce: a fixed number of equal units, such as conversations, queries or
// connections, among owners who may each want all of them.
//
// # The rule
//
// A unit is charged to whoever began what it is used for. While units are free, whoever asks gets one, so nothing
// lies idle for the sake of fairness. When none is free, the owner who holds the most loses the unit that it has not
// used for the longest time, to an owner who holds at least two fewer. Everybody else who asks replaces a unit of
// their own, and an owner who holds nothing is refused only where nobody holds more than one. So owners who want
// little always get it, and owners who want much end up equal (max-min fairness). A unit moves only where that makes
// shares more equal: two owners never take the same unit from each other in turn.
//
// The node's own work has a reserve: so many units are not charged to it, and it gets them whoever holds them. Beyond
// the reserve the node is an owner like the others.
//
// Some things cannot be taken away once they have begun. A Limit with Keep takes nothing: it gives an owner no more
// than are free at that time, and leaves the reserve free for the node. The first greedy owner then leaves half of
// all units to others, the second half of that, and as what they hold ends, their shares become equal: n of them hold
// 1/(n+1) each and leave as much.
//
// # Choosing an owner
//
// An owner must be somebody who cannot easily be many: a pod's Port, a peer, a prefix of outside addresses. A pod that
// were counted by its ports would be as many owners as it likes.
//
// # Cost
//
// Acquire and Release take O(log n) for n owners who hold something, Touch O(1). All of them take a mutex, so they
// are for what begins and ends, not for every packet. None allocates, except for an owner beyond the largest number
// of owners so far. Decide and Ranking are the rule without the rest, for tables that hold their things in a way of
// their own.
package share
