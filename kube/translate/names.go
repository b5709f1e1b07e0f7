package translate

import (
	"cmp"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// objectName names an object among those of its kind.
type objectName struct{ namespace, name string }

func nameOf(obj metav1.Object) objectName { return objectName{obj.GetNamespace(), obj.GetName()} }

func (n objectName) String() string { return n.namespace + "/" + n.name }

func (n objectName) compare(other objectName) int {
	return cmp.Or(cmp.Compare(n.namespace, other.namespace), cmp.Compare(n.name, other.name))
}

// compareNames compares objects by the order of a snapshot.
func compareNames[T metav1.Object](a, b T) int { return nameOf(a).compare(nameOf(b)) }

// find returns the object of that name in a sorted list, or nil.
func find[T metav1.Object](sorted []T, name objectName) (obj T) {
	i, found := slices.BinarySearchFunc(sorted, name, func(x T, n objectName) int { return nameOf(x).compare(n) })
	if found {
		obj = sorted[i]
	}
	return obj
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

func annotation(key string) string { return "metadata.annotations[" + key + "]" }

// deref returns what p points at, or otherwise when p is nil.
func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
