package law

import "sync/atomic"

// group is the pods of one namespace with the same labels, or the nodes with the same: rules cannot tell them from
// each other.
type group struct {
	namespace string
	labels    Labels
}

// Nobody is the number of no group: of whoever is neither pod nor node, and of a pod of which not all labels are known.
const Nobody = 0

// ofNodes is in place of a namespace for nodes.
const ofNodes = ""

// Groups numbers the groups of pods and nodes. A number is never given twice, so that whoever has asked before goes on
// to mean the same by it. Make it with NewGroups. It is not safe for concurrent use, but Readings may read it while it
// changes: they see what was published last.
type Groups struct {
	numbers map[string]int
	// used counts the addresses of each group's pods, and inUse the groups that have some.
	used  []int
	inUse int
	list  []group
	// all is list as it was with the last Publish. Anybody may read it.
	all atomic.Pointer[[]group]
	key []byte
}

// NewGroups returns no groups.
func NewGroups() *Groups {
	return &Groups{numbers: map[string]int{}, used: make([]int, Nobody+1), list: make([]group, Nobody+1)}
}

// Len returns how many groups are remembered, Nobody among them.
func (x *Groups) Len() int { return len(x.list) }

// OfNode returns the number of the group of a node with these labels.
func (x *Groups) OfNode(labels Labels) int { return x.Of(ofNodes, labels) }

// Of returns the number of the group of a pod of a namespace with these labels.
func (x *Groups) Of(namespace string, labels Labels) int {
	x.key = append(append(x.key[:0], namespace...), 0)
	for _, l := range labels {
		x.key = append(append(append(append(x.key, l.Key...), 0), l.Value...), 0)
	}
	n, known := x.numbers[string(x.key)]
	if !known {
		n = len(x.list)
		x.numbers[string(x.key)] = n
		x.list, x.used = append(x.list, group{namespace, labels}), append(x.used, 0)
	}
	return n
}

// Count notes that a group has by more, or fewer, addresses.
func (x *Groups) Count(group, by int) {
	if group == Nobody {
		return
	}
	before := x.used[group]
	if x.used[group] += by; before == 0 {
		x.inUse++
	} else if x.used[group] == 0 {
		x.inUse--
	}
}

// wasted is how many groups are remembered for each one that may be in use, before all are numbered anew.
const wasted = 2

// Stale reports whether so many groups have gone that all should be numbered anew. more is how many may be in use that
// are not counted.
func (x *Groups) Stale(more int) bool { return len(x.list) > 64+wasted*(x.inUse+more) }

// Publish has all groups seen by Readings.
func (x *Groups) Publish() {
	if before := x.all.Load(); before == nil || len(*before) != len(x.list) {
		list := x.list
		x.all.Store(&list)
	}
}
