package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
)

// object is a type constraint: a comparable kube.Object.
type object interface {
	comparable
	kube.Object
}

type objectName struct{ namespace, name string }

func (n objectName) compare(m objectName) int {
	return cmp.Or(cmp.Compare(n.namespace, m.namespace), cmp.Compare(n.name, m.name))
}

func nameOf(obj metav1.Object) objectName { return objectName{obj.GetNamespace(), obj.GetName()} }

// store holds the objects of one kind. A reflector fills it. A snapshot is a sorted list, which shares unchanged
// objects with the snapshot before. An object that arrives again with the same content is not a change: after a
// relist, even from an API server whose history went back, unchanged objects keep their pointers.
type store[T object] struct {
	keep  func(any) T        // what is kept of an object that arrived; nil keeps the object
	omit  func(T) bool       // of what is kept of objects, what is left out; nil: nothing is
	touch func()             // called after every change and after the first Replace
	next  func(before, is T) // called for every object that takes the place of another of its name; nil: nothing is

	mu sync.Mutex
	// mu guards the rest.
	objects map[objectName]T
	changed map[objectName]struct{} // the names that have changed since list was made
	list    roll.List[T]
	flat    []T // list as a slice, if fresh: never written to
	fresh   bool
	synced  bool
}

var _ holder = (*store[*kube.PolicyBinding])(nil)

func newStore[T object](keep func(any) T, touch func()) *store[T] {
	if keep == nil {
		keep = func(obj any) T { return obj.(T) }
	}
	return &store[T]{keep: keep, touch: touch, objects: map[objectName]T{}, changed: map[objectName]struct{}{}}
}

// semantic compares objects by what they mean. It must know each type with fields that are not exported.
var semantic = withAddrs(equality.Semantic.Copy())

func withAddrs(e conversion.Equalities) conversion.Equalities {
	if err := e.AddFunc(func(a, b netip.Addr) bool { return a == b }); err != nil {
		panic(err) // the func has another form than it must have
	}
	return e
}

// Add implements cache.ReflectorStore.
func (s *store[T]) Add(obj any) error {
	s.mu.Lock()
	changed := s.putLocked(obj)
	s.mu.Unlock()
	if changed {
		s.touch()
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (s *store[T]) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *store[T]) Delete(obj any) error {
	s.mu.Lock()
	s.removeLocked(nameOf(s.keep(obj)))
	s.mu.Unlock()
	s.touch()
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store[T]) Replace(list []any, _ string) error {
	s.mu.Lock()
	there := make(map[objectName]struct{}, len(list))
	changed := !s.synced
	for _, obj := range list {
		changed = s.putLocked(obj) || changed
		there[nameOf(s.keep(obj))] = struct{}{}
	}
	for name := range s.objects {
		if _, ok := there[name]; !ok {
			s.removeLocked(name)
			changed = true
		}
	}
	s.synced = true
	s.mu.Unlock()
	if changed {
		s.touch()
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *store[T]) Resync() error { return nil }

// putLocked reports whether obj differs from the object that is held.
func (s *store[T]) putLocked(obj any) bool {
	now := s.keep(obj)
	now.SetResourceVersion("") // only the reflector needs it, and has read it
	name := nameOf(now)
	old, known := s.objects[name]
	if s.omit != nil && s.omit(now) {
		if known {
			s.removeLocked(name)
		}
		return known
	}
	if known {
		if semantic.DeepEqual(old, now) {
			return false
		}
		if s.next != nil {
			s.next(old, now)
		}
	}
	s.objects[name] = now
	s.changed[name] = struct{}{}
	return true
}

func (s *store[T]) removeLocked(name objectName) {
	delete(s.objects, name)
	s.changed[name] = struct{}{}
}

// snapshot returns the objects sorted by namespace and name, and whether all of them have arrived once. When nothing
// has changed, it is the same list as last time.
func (s *store[T]) snapshot() (list roll.List[T], synced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updateLocked()
	return s.list, s.synced
}

// slice returns the list of snapshot as a slice, which must not be changed. When nothing has changed, it is the same
// one as last time.
func (s *store[T]) slice() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.updateLocked(); !s.fresh {
		s.flat, s.fresh = s.list.Slice(), true
	}
	return s.flat
}

// updateLocked brings the list up to date.
func (s *store[T]) updateLocked() {
	if len(s.changed) == 0 {
		return
	}
	s.fresh = false
	if edits, ok := s.replacedLocked(); ok {
		s.list = s.list.With(edits...)
		clear(s.changed)
		return
	}
	come := make([]objectName, 0, len(s.changed))
	for name := range s.changed {
		if _, there := s.objects[name]; there {
			come = append(come, name)
		}
	}
	slices.SortFunc(come, objectName.compare)
	next := make([]T, 0, len(s.objects))
	for _, obj := range s.list.All() {
		name := nameOf(obj)
		for len(come) > 0 && come[0].compare(name) < 0 {
			next, come = append(next, s.objects[come[0]]), come[1:]
		}
		if _, changed := s.changed[name]; !changed {
			next = append(next, obj)
		}
	}
	for _, name := range come {
		next = append(next, s.objects[name])
	}
	s.list = roll.From(next)
	clear(s.changed)
}

// fewChanged is how many objects are looked for one by one. Of more changes the whole list is made anew.
const fewChanged = 64

// replacedLocked returns the edits of the list by which it is up to date, if no object has come or gone.
func (s *store[T]) replacedLocked() (edits []roll.Edit[T], ok bool) {
	if len(s.changed) > fewChanged {
		return nil, false
	}
	for name := range s.changed {
		obj, there := s.objects[name]
		at, known := s.list.Search(func(x T) int { return nameOf(x).compare(name) })
		if !there || !known {
			return nil, false
		}
		edits = append(edits, roll.Edit[T]{At: at, To: obj})
	}
	return edits, true
}

// put implements holder.
func (s *store[T]) put(objs *kube.Objects) (synced bool) {
	list, synced := s.snapshot()
	kube.SetList(objs, list, s.slice)
	return synced
}

// get returns the object of that name, or nil.
func (s *store[T]) get(namespace, name string) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[objectName{namespace, name}]
}

// fill implements holder.
func (s *store[T]) fill(objs *kube.Objects) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for obj := range kube.ListOf[T](objs) {
		if s.omit != nil && s.omit(obj) {
			continue
		}
		name := nameOf(obj)
		s.objects[name] = obj
		s.changed[name] = struct{}{}
	}
}

// forget implements holder.
func (s *store[T]) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.objects {
		s.removeLocked(name)
	}
	s.synced = false
}

// pass implements holder.
func (s *store[T]) pass() {
	s.mu.Lock()
	first := !s.synced
	if first {
		for name := range s.objects { // from fill: nobody says whether they are still there
			s.removeLocked(name)
		}
	}
	s.synced = true
	s.mu.Unlock()
	if first {
		s.touch()
	}
}
