package policy

import (
	"sync"
	"sync/atomic"
)

// realm is the policies of one namespace together with the pods that they may name. It is compiled when the first pod
// needs it: most namespaces have no pods on a node. Its methods are safe for concurrent use.
type realm struct {
	namespace string
	list      []*Policy
	serials   []uint32 // of list
	// law compiles list once.
	law func() *law
	// namespaces are the labels of those that are known.
	namespaces map[string]Labels
	groups     *groups
	// ids are the rules that name each group of pods, by the groups' numbers. It is nil until somebody asks.
	ids atomic.Pointer[[]set]

	mu sync.Mutex
	// mu guards the rest. like has what was found for the groups that no rule tells from each other.
	like map[string]set
	key  []byte
}

// newRealm returns the realm of a namespace, among no pods.
func newRealm(namespace string, list []*Policy, serials []uint32) *realm {
	return &realm{namespace: namespace, list: list, serials: serials, law: sync.OnceValue(func() *law { return lawOf(list, serials) })}
}

// among returns a realm with the policies of r, among these namespaces and groups.
func (r *realm) among(namespaces map[string]Labels, g *groups) *realm {
	return &realm{namespace: r.namespace, list: r.list, serials: r.serials, law: r.law, namespaces: namespaces, groups: g, like: map[string]set{}}
}

// asked reports whether somebody has needed the realm.
func (r *realm) asked() bool { return r.ids.Load() != nil }

// naming returns the rules that name a group of pods, which must not be changed.
func (r *realm) naming(group int) set {
	if ids := r.ids.Load(); ids != nil && group < len(*ids) {
		return (*ids)[group]
	}
	return r.learn()[group]
}

// learn looks at all groups that are new. It returns the rules that name each group.
func (r *realm) learn() []set {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := *r.groups.all.Load()
	var ids []set
	if before := r.ids.Load(); before != nil {
		if ids = *before; len(ids) >= len(all) {
			return ids
		}
	}
	if ids == nil {
		ids = append(ids, r.law().none) // for nobody
	}
	for i := len(ids); i < len(all); i++ {
		ids = append(ids, r.look(&all[i])) // none looks beyond the end of a list that was stored before
	}
	r.ids.Store(&ids)
	return ids
}

func (r *realm) look(g *group) set {
	l, own := r.law(), g.namespace == r.namespace
	if !own && !l.parties.crosses {
		return l.none
	}
	labels, known := r.namespaces[g.namespace]
	if !known {
		labels = Labels{{nameLabel, g.namespace}}
	}
	r.key = l.parties.spaces.appendKey(append(r.key[:0], which(own), which(known)), labels)
	r.key = l.parties.pods.appendKey(r.key, g.labels)
	found, before := r.like[string(r.key)]
	if !before {
		found = newSet(len(l.known))
		l.parties.naming(found, g, space{labels, own, known})
		r.like[string(r.key)] = found
	}
	return found
}

// which returns 1 for true.
func which(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// side returns what the policies permit a pod in one direction; nil for everything.
func (r *realm) side(p *Pod, egress bool) *side {
	var s *side
	for i, one := range r.list {
		if !one.rules(egress).Isolates || !one.Pods.Matches(p.Labels) {
			continue
		}
		if s == nil {
			l := r.law()
			s = &side{realm: r, law: l, rules: newSet(len(l.known)), egress: egress, pod: p, isolates: idOf(r.serials[i], egress, -1)}
		}
		for n := s.law.of[i][which(egress)]; n.first < n.end; n.first++ {
			s.rules.add(n.first)
		}
	}
	return s
}
