package policy

import "sync/atomic"

// group is the pods of one namespace with the same labels: policies cannot tell them from each other.
type group struct {
	namespace string
	labels    Labels
}

// nobody is the number of no group: of whoever is no pod, and of a pod of which not all labels are known.
const nobody = 0

// groups numbers the groups of pods. A number is never given twice, so that older Tables go on to mean the same by it.
type groups struct {
	numbers map[string]int
	// used counts the addresses of each group's pods, and inUse the groups that have some.
	used  []int
	inUse int
	list  []group
	// all is list as it was with the last publish. Anybody may read it.
	all atomic.Pointer[[]group]
	key []byte
}

func newGroups() *groups {
	return &groups{numbers: map[string]int{}, used: make([]int, nobody+1), list: make([]group, nobody+1)}
}

// of returns the number of a pod's group.
func (x *groups) of(p *Pod) int {
	if p.Vague {
		return nobody
	}
	x.key = append(append(x.key[:0], p.Namespace...), 0)
	for _, l := range p.Labels {
		x.key = append(append(append(append(x.key, l.Key...), 0), l.Value...), 0)
	}
	n, known := x.numbers[string(x.key)]
	if !known {
		n = len(x.list)
		x.numbers[string(x.key)] = n
		x.list, x.used = append(x.list, group{p.Namespace, p.Labels}), append(x.used, 0)
	}
	return n
}

// count notes that a group has by more, or fewer, addresses.
func (x *groups) count(group, by int) {
	if group == nobody {
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

// stale reports whether too many groups have gone. own is the number of pods that are not counted.
func (x *groups) stale(own int) bool { return len(x.list) > 64+wasted*(x.inUse+own) }

// publish has all groups seen by realms.
func (x *groups) publish() {
	if before := x.all.Load(); before == nil || len(*before) != len(x.list) {
		list := x.list
		x.all.Store(&list)
	}
}
