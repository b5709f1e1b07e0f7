package translate

import (
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// mostJoined is how many endpoints of one Service are joined into one list, in which each stands once. More of them
// stay in parts, one for each EndpointSlice, so that one endpoint costs its slice and not its Service. What is in
// several slices is in several parts then, and is the same backend in all of them.
const mostJoined = 1000

// many reports whether the endpoints of a Service's slices stay in parts. Each part takes memory for each of the
// Service's ports, whatever it has, so they are joined where slices and ports together are too many.
func many(list []*discoveryv1.EndpointSlice, ports int) bool {
	n := 0
	for _, s := range list {
		n += len(s.Endpoints)
	}
	return len(list) > 1 && n > mostJoined && len(list)*ports <= mostPairs
}

// byService remembers something of each part of Services. The zero value is empty.
type byService[K comparable, V any] struct{ known map[objectName]map[K]V }

// turn returns what is known of the parts of a Service, and where to put what is to be known from now on, of n parts.
func (b *byService[K, V]) turn(name objectName, n int) (known, next map[K]V) {
	known, next = b.known[name], make(map[K]V, n)
	if b.known == nil {
		b.known = map[objectName]map[K]V{}
	}
	b.known[name] = next
	return known, next
}

// only forgets the Services that have no parts in a list, which is sorted by name.
func (b *byService[K, V]) only(list roll.List[*services.Service]) {
	for name := range b.known {
		i, there := list.Search(func(s *services.Service) int { return objectName{s.Namespace, s.Name}.compare(name) })
		if !there || len(list.At(i).Parts) == 0 {
			delete(b.known, name)
		}
	}
}

// partStage remembers what slices come to as parts of Services.
type partStage struct {
	byService[*discoveryv1.EndpointSlice, *sliced]
}

// sliced is what a slice comes to.
type sliced struct {
	endpoints []services.Endpoint
	problems  []kube.Problem
	part      *services.Part // the endpoints, with pods that leave marked
	marked    bool           // part has such pods
	version   int            // of leavingPods
}

// partsOf returns the parts of a Service that has many endpoints.
func (s *serviceStage) partsOf(name objectName, list []*discoveryv1.EndpointSlice, say *kube.Report) (parts []*services.Part) {
	if tooMany(list, say) {
		return nil
	}
	known, next := s.parts.turn(name, len(list))
	for _, es := range list {
		x := known[es]
		if x == nil {
			x = s.slice(es)
		}
		x.mark(&s.leaving)
		next[es] = x
		say.Problems = append(say.Problems, x.problems...)
		if len(x.endpoints) > 0 {
			parts = append(parts, x.part)
		}
	}
	return parts
}

// slice reads a slice by itself.
func (s *serviceStage) slice(es *discoveryv1.EndpointSlice) *sliced {
	var say kube.Report
	list := endpoints([]*discoveryv1.EndpointSlice{es}, s.site, &say)
	return &sliced{endpoints: list, problems: say.Problems, part: &services.Part{Endpoints: list}, version: -1}
}

// mark brings the part up to date with the pods that leave. It is another part only if something of it changes.
func (x *sliced) mark(leaving *leavingPods) {
	if x.version == leaving.version {
		return
	}
	x.version = leaving.version
	leaves := slices.ContainsFunc(x.endpoints, func(e services.Endpoint) bool { _, leaves := leaving.ids[e.ID]; return leaves })
	if !leaves && !x.marked {
		return
	}
	list := slices.Clone(x.endpoints)
	leaving.mark(list)
	x.part, x.marked = &services.Part{Endpoints: list}, leaves
}

// tally counts, for each Service, the slices of which something is so. The zero value has none.
type tally map[objectName]int

// change takes the slices that are gone and those that have come, and returns which Services of these had such slices
// before.
func (t *tally) change(gone, come []*discoveryv1.EndpointSlice, is func(*discoveryv1.EndpointSlice) bool) (had map[objectName]bool) {
	had = map[objectName]bool{}
	if *t == nil {
		*t = tally{}
	}
	count := func(list []*discoveryv1.EndpointSlice, by int) {
		for _, es := range list {
			if !is(es) {
				continue
			}
			serviceOf(es, func(name objectName) {
				if _, known := had[name]; !known {
					had[name] = (*t)[name] > 0
				}
				if (*t)[name] += by; (*t)[name] == 0 {
					delete(*t, name)
				}
			})
		}
	}
	count(gone, -1)
	count(come, 1)
	return had
}
