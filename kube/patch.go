package kube

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Replace gives a copy of o, which is sorted, with now in place of old. Lists and objects that stay the same are shared. It
// reports false when that cannot be: an object of old is not in o (that very object, not one of its name), or a name of
// now is taken.
func (o *Objects) Replace(old, now *Objects) (Objects, bool) {
	p := patcher{good: true}
	out := Objects{
		Nodes:          patch(&p, o.Nodes, old.Nodes, now.Nodes),
		Namespaces:     patch(&p, o.Namespaces, old.Namespaces, now.Namespaces),
		Pods:           patch(&p, o.Pods, old.Pods, now.Pods),
		Services:       patch(&p, o.Services, old.Services, now.Services),
		EndpointSlices: patch(&p, o.EndpointSlices, old.EndpointSlices, now.EndpointSlices),
		Ingresses:      patch(&p, o.Ingresses, old.Ingresses, now.Ingresses),
		IngressClasses: patch(&p, o.IngressClasses, old.IngressClasses, now.IngressClasses),
		ServiceCIDRs:   patch(&p, o.ServiceCIDRs, old.ServiceCIDRs, now.ServiceCIDRs),
		Secrets:        patch(&p, o.Secrets, old.Secrets, now.Secrets),
		ConfigMaps:     patch(&p, o.ConfigMaps, old.ConfigMaps, now.ConfigMaps),
		Origin:         o.Origin,
	}
	if !p.good {
		return Objects{}, false
	}
	if !maps.Equal(old.Origin, now.Origin) {
		out.Origin = maps.Clone(o.Origin)
		for ref := range old.Origin {
			delete(out.Origin, ref)
		}
		if out.Origin == nil {
			out.Origin = map[Ref]string{}
		}
		maps.Copy(out.Origin, now.Origin)
	}
	return out, true
}

type patcher struct{ good bool }

// object is a pointer to one.
type object interface {
	comparable
	metav1.Object
}

func patch[T object](p *patcher, list, old, now []T) []T {
	if len(old) == 0 && len(now) == 0 {
		return list
	}
	out := make([]T, len(list), len(list)+len(now))
	copy(out, list)
	for _, obj := range old {
		i, found := slices.BinarySearchFunc(out, obj, compareNames)
		if !found || out[i] != obj {
			p.good = false
			return nil
		}
		out = slices.Delete(out, i, i+1)
	}
	for _, obj := range now {
		i, found := slices.BinarySearchFunc(out, obj, compareNames)
		if found {
			p.good = false
			return nil
		}
		out = slices.Insert(out, i, obj)
	}
	return out
}

// Sorted gives o with every list sorted by namespace and name; o stays as it is, and lists that are sorted are shared.
// Those that known has, too, need no look: known is sorted.
func (o *Objects) Sorted(known *Objects) Objects {
	return Objects{
		Nodes:          sorted(o.Nodes, known.Nodes),
		Namespaces:     sorted(o.Namespaces, known.Namespaces),
		Pods:           sorted(o.Pods, known.Pods),
		Services:       sorted(o.Services, known.Services),
		EndpointSlices: sorted(o.EndpointSlices, known.EndpointSlices),
		Ingresses:      sorted(o.Ingresses, known.Ingresses),
		IngressClasses: sorted(o.IngressClasses, known.IngressClasses),
		ServiceCIDRs:   sorted(o.ServiceCIDRs, known.ServiceCIDRs),
		Secrets:        sorted(o.Secrets, known.Secrets),
		ConfigMaps:     sorted(o.ConfigMaps, known.ConfigMaps),
		Origin:         o.Origin,
	}
}

func sorted[T object](list, known []T) []T {
	if Same(list, known) || isSorted(list, known) {
		return list
	}
	list = slices.Clone(list)
	sortByName(list)
	return list
}

// isSorted compares no names of neighbours that are neighbours in known, which is sorted, too.
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

// Same reports whether two lists are one, without looking at what is in it.
func Same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
