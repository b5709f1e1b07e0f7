package kube

import (
	"cmp"
	"iter"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"tapestry.dev/tapestry/roll"
)

// Object is an object of the Kubernetes API: a pointer to a struct with metadata.
type Object interface {
	metav1.Object
	runtime.Object
}

// object is a type constraint: a comparable Object.
type object interface {
	comparable
	Object
}

// lists has the operations on the objects of one kind that depend on their Go type. No existing list is changed.
type lists interface {
	// set sets the list of o to a new list of objects, which are of the kind.
	set(o *Objects, objects []metav1.Object)
	// objects returns how many objects there are, and the func that returns one of them by its index.
	objects(o *Objects) (n int, at func(i int) Object)
	// mapped sets the list of out to a new list of f applied to the objects of o, or of the objects themselves when f
	// is nil.
	mapped(out, o *Objects, f func(Object) Object)
	// sorted sets the list of out to the list of o in order of namespace and name. A list that is sorted already is
	// shared. The list of known must be sorted.
	sorted(out, o, known *Objects)
	// replaced sets the list of out to the list of o, which must be sorted, with the objects of now in place of those
	// of old. It reports false when that is impossible (see Objects.Replace).
	replaced(out, o, old, now *Objects) bool
}

// listAt returns the list for objects of type T in an Objects.
type listAt[T object] func(*Objects) *[]T

var _ lists = listAt[*PolicyBinding](nil)

// SetList sets the list for objects of type T in o, T being the type of a kind that is held. slice returns the same
// objects as a slice, for kinds that have such a list.
func SetList[T object](o *Objects, list roll.List[T], slice func() []T) {
	switch at := KindFor[T]().lists.(type) {
	case rollAt[T]:
		*at(o) = list
	case listAt[T]:
		*at(o) = slice()
	}
}

// ListOf yields the objects of type T in o, T being the type of a kind that is held.
func ListOf[T object](o *Objects) iter.Seq[T] {
	return func(yield func(T) bool) {
		n, at := KindFor[T]().lists.objects(o)
		for i := range n {
			if !yield(at(i).(T)) {
				return
			}
		}
	}
}

func (at listAt[T]) set(o *Objects, objects []metav1.Object) { *at(o) = typed[T](objects) }

func (at listAt[T]) objects(o *Objects) (int, func(int) Object) {
	list := *at(o)
	return len(list), func(i int) Object { return list[i] }
}

func (at listAt[T]) mapped(out, o *Objects, f func(Object) Object) {
	list := slices.Clone(*at(o))
	if f != nil {
		for i, obj := range list {
			list[i] = f(obj).(T)
		}
	}
	*at(out) = list
}

func (at listAt[T]) sorted(out, o, known *Objects) {
	list := *at(o)
	if before := *at(known); !Same(list, before) && !isSorted(list, before) {
		list = slices.Clone(list)
		slices.SortStableFunc(list, compareNames)
	}
	*at(out) = list
}

func (at listAt[T]) replaced(out, o, old, now *Objects) bool {
	list, ok := patch(*at(o), *at(old), *at(now))
	*at(out) = list
	return ok
}

// rollAt returns the list for objects of type T in an Objects, of a kind whose successive lists share their memory.
type rollAt[T object] func(*Objects) *roll.List[T]

var _ lists = rollAt[*PolicyBinding](nil)

func (at rollAt[T]) set(o *Objects, objects []metav1.Object) { *at(o) = roll.From(typed[T](objects)) }

func (at rollAt[T]) objects(o *Objects) (int, func(int) Object) {
	list := *at(o)
	return list.Len(), func(i int) Object { return list.At(i) }
}

func (at rollAt[T]) mapped(out, o *Objects, f func(Object) Object) {
	list := at(o).Slice()
	if f != nil {
		for i, obj := range list {
			list[i] = f(obj).(T)
		}
	}
	*at(out) = roll.From(list)
}

func (at rollAt[T]) sorted(out, o, known *Objects) {
	list, before := *at(o), *at(known)
	if changed, ok := roll.Replaced(before, list); ok && !slices.ContainsFunc(changed, func(i int) bool { return compareNames(before.At(i), list.At(i)) != 0 }) {
		*at(out) = list
		return
	}
	if slice := list.Slice(); !isSorted(slice, before.Slice()) {
		slices.SortStableFunc(slice, compareNames)
		list = roll.From(slice)
	}
	*at(out) = list
}

func (at rollAt[T]) replaced(out, o, old, now *Objects) bool {
	list, gone, come := *at(o), *at(old), *at(now)
	if gone.Len() == 0 && come.Len() == 0 {
		*at(out) = list
		return true
	}
	if edits, ok := inPlace(list, gone, come); ok {
		*at(out) = list.With(edits...)
		return true
	}
	slice, ok := patch(list.Slice(), gone.Slice(), come.Slice())
	*at(out) = roll.From(slice)
	return ok
}

// typed returns objects, which are all of type T.
func typed[T object](objects []metav1.Object) []T {
	list := make([]T, len(objects))
	for i, obj := range objects {
		list[i] = obj.(T)
	}
	return list
}

// inPlace returns the edits of list, which must be sorted, by which now takes the place of old. It returns false when
// they have not the same names in the same order, or old is not in list.
func inPlace[T object](list, old, now roll.List[T]) (edits []roll.Edit[T], ok bool) {
	if old.Len() != now.Len() {
		return nil, false
	}
	for i, obj := range old.All() {
		at, found := list.Search(func(x T) int { return compareNames(x, obj) })
		if !found || list.At(at) != obj || compareNames(obj, now.At(i)) != 0 {
			return nil, false
		}
		edits = append(edits, roll.Edit[T]{At: at, To: now.At(i)})
	}
	return edits, true
}

// patch returns list, which must be sorted, with now in place of old. It returns list itself when both are empty.
func patch[T object](list, old, now []T) ([]T, bool) {
	if len(old) == 0 && len(now) == 0 {
		return list, true
	}
	out := make([]T, len(list), len(list)+len(now))
	copy(out, list)
	for _, obj := range old {
		i, found := slices.BinarySearchFunc(out, obj, compareNames)
		if !found || out[i] != obj {
			return nil, false
		}
		out = slices.Delete(out, i, i+1)
	}
	for _, obj := range now {
		i, found := slices.BinarySearchFunc(out, obj, compareNames)
		if found {
			return nil, false
		}
		out = slices.Insert(out, i, obj)
	}
	return out, true
}

// isSorted reports whether list is sorted, given that known is. It does not compare the names of two neighbours that
// are neighbours in known too.
func isSorted[T object](list, known []T) bool {
	k := 0 // list[i] should be known[k]
	joined := false
	for i, obj := range list {
		here := k < len(known) && known[k] == obj
		if i > 0 && !(here && joined) && compareNames(list[i-1], obj) > 0 {
			return false
		}
		switch {
		case here:
			k++
		case k+1 < len(known) && known[k+1] == obj: // known[k] is gone
			here, k = true, k+2
		case k < len(known) && i+1 < len(list) && known[k] == list[i+1]: // obj has come
		default:
			k++
		}
		joined = here
	}
	return true
}

func compareNames[T metav1.Object](a, b T) int {
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// Same reports whether a and b are the same memory, without comparing elements.
func Same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
