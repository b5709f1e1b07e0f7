package kube

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Builder gathers the objects of a snapshot. One object takes the same time however many there are, although lists of
// snapshots never change. The zero value is ready.
type Builder struct {
	objects map[*Kind][]metav1.Object
	origin  map[Ref]string
}

// Add adds one object; origin may be "". It does nothing and returns false when Objects has no list for the object's
// type.
func (b *Builder) Add(obj metav1.Object, origin string) bool {
	k := KindOf(obj)
	if k == nil {
		return false
	}
	if b.objects == nil {
		b.objects = map[*Kind][]metav1.Object{}
	}
	b.objects[k] = append(b.objects[k], obj)
	if origin != "" {
		if b.origin == nil {
			b.origin = map[Ref]string{}
		}
		b.origin[RefOf(obj)] = origin
	}
	return true
}

// Objects returns the objects, each list in the order in which they were added. The Builder must not be used after
// that.
func (b *Builder) Objects() Objects {
	o := Objects{Origin: b.origin}
	for k, list := range b.objects {
		k.lists.set(&o, list)
	}
	return o
}
