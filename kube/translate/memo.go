package translate

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

// Translator translates one snapshot of a cluster after the other. Every Result is the one that Translate gives; but what
// follows from objects that were in the snapshot before, the very same objects, is remembered and not worked out again,
// and parts of Results that are equal are shared. The zero value is ready. It is for one goroutine.
type Translator struct {
	objs  kube.Objects // of the last snapshot, sorted
	zones map[string]string
	nodes kept[*corev1.Node, []node]
	pods  kept[*corev1.Pod, []services.Pod]
	ports kept[*corev1.Pod, []services.HostPort]

	options  Options // of the last Result
	triggers []time.Time

	slicesOf map[objectName][]*discoveryv1.EndpointSlice
	entries  map[*corev1.Service]*entry
	claims   *serviceClaims
	round    uint64
	list     []*services.Service // of the last Result
	// settled: no Service has a problem or lost anything to another, so that entries and claims are complete.
	settled bool
}

// manyServices is how many may change before it is as cheap to look at all.
const manyServices = 64

// Translate gives what follows from objs for the node of o.
func (m *Translator) Translate(objs kube.Objects, o Options) Result {
	if m.options != o {
		*m = Translator{options: o}
	}
	t := newTranslator(objs, o, m)
	nodes := t.nodes()
	ranges := t.serviceRanges()
	var r Result
	t.peers(nodes, &r)
	r.Leaving = t.leaving()
	r.Netstack.ServiceCIDRs = ranges
	r.Services = t.services(nodes, ranges)
	r.Netstack.LocalAddrs = slices.Clone(r.Services.DNSAddrs)
	r.Ingress, r.Statuses = t.ingresses(nodes, r.Services.Services)
	r.Problems = t.sorted()
	m.triggers = nil
	if m.zones != nil { // not the first
		m.triggers = triggersOf(&m.objs, t.objs)
	}
	m.objs, m.zones = *t.objs, t.zones
	return r
}

// kept is what followed from a list of objects last time.
type kept[T any, R any] struct {
	list     []T
	result   R
	problems []kube.Problem
	known    bool
}

func (k *kept[T, R]) of(t *translator, list []T, work func() R) R {
	if !k.known || !kube.Same(k.list, list) || len(k.problems) > 0 { // where an object was written may have changed
		before := len(t.problems)
		k.list, k.result, k.known = list, work(), true
		k.problems = slices.Clone(t.problems[before:])
	}
	return k.result
}

// entry is what a Service without problems came to.
type entry struct {
	round   uint64 // when it was needed last
	slices  []*discoveryv1.EndpointSlice
	service *services.Service // belongs to Results, too: replaced, not changed
	served  bool              // false when the Service has nothing clients could use
	ips     []netip.Addr
	ports   []portKey
}

// serviceList compiles the Services.
func (t *translator) serviceList() []*services.Service {
	m := t.memo
	if !maps.Equal(m.zones, t.zones) {
		m.entries, m.settled = nil, false // endpoints take their zones from Nodes
	}
	changed := m.group(t.objs.EndpointSlices)
	patched := false
	if m.settled {
		m.list, patched = t.patchServices(changed)
	}
	if !patched {
		m.list = t.allServices()
	}
	return m.list
}

// allServices compiles the Services, those anew that need it.
func (t *translator) allServices() []*services.Service {
	m := t.memo
	m.round++
	m.settled = true
	if m.entries == nil {
		m.entries = make(map[*corev1.Service]*entry, len(t.objs.Services))
	}
	m.claims = &serviceClaims{
		ips:       make(map[netip.Addr]kube.Ref, len(t.objs.Services)),
		nodePorts: map[portKey]kube.Ref{},
	}
	list := make([]*services.Service, 0, len(t.objs.Services))
	for _, obj := range t.objs.Services {
		if e := t.entry(obj); e.served {
			list = append(list, e.service)
		}
	}
	maps.DeleteFunc(m.entries, func(_ *corev1.Service, e *entry) bool { return e.round != m.round })
	return list
}

// entry gives what a Service comes to: as before, when nothing of it has changed and nobody has taken what it had.
func (t *translator) entry(obj *corev1.Service) *entry {
	m := t.memo
	e := m.entries[obj]
	if e == nil || !m.claims.again(e, kube.RefOf(obj)) {
		return t.newEntry(obj)
	}
	if list := m.slicesOf[nameOf(obj)]; !slices.Equal(e.slices, list) {
		before := len(t.problems)
		if e.slices = list; e.served {
			e.service = t.withEndpoints(e.service, list)
		}
		m.keep(obj, e, len(t.problems) == before)
	}
	e.round = m.round
	return e
}

func (t *translator) newEntry(obj *corev1.Service) *entry {
	m, before := t.memo, len(t.problems)
	e := &entry{round: m.round, slices: m.slicesOf[nameOf(obj)]}
	m.claims.ownIPs, m.claims.ownPorts = nil, nil
	var s services.Service
	if s, e.served = t.service(obj, m.claims); e.served {
		e.service = t.withEndpoints(&s, e.slices)
	}
	e.ips, e.ports = m.claims.ownIPs, m.claims.ownPorts
	m.keep(obj, e, len(t.problems) == before)
	return e
}

// keep remembers an entry, if there was nothing to say about it.
func (m *Translator) keep(obj *corev1.Service, e *entry, good bool) {
	if good {
		m.entries[obj] = e
		return
	}
	delete(m.entries, obj)
	m.settled = false
}

// again claims what e had; false, and nothing is claimed, when somebody else has some of it.
func (c *serviceClaims) again(e *entry, ref kube.Ref) bool {
	for _, a := range e.ips {
		if _, taken := c.ips[a]; taken {
			return false
		}
	}
	for _, p := range e.ports {
		if _, taken := c.nodePorts[p]; taken {
			return false
		}
	}
	for _, a := range e.ips {
		c.ips[a] = ref
	}
	for _, p := range e.ports {
		c.nodePorts[p] = ref
	}
	return true
}

// release gives back what e has.
func (c *serviceClaims) release(e *entry) {
	for _, a := range e.ips {
		delete(c.ips, a)
	}
	for _, p := range e.ports {
		delete(c.nodePorts, p)
	}
}

// patchServices gives the list of before with what has changed since: Services, and the slices of those with these names.
// It reports false when too much has, or when there is something to say about it: who gets what two Services want is
// decided by looking at all.
func (t *translator) patchServices(names []objectName) ([]*services.Service, bool) {
	m := t.memo
	var gone, come []*corev1.Service
	difference(m.objs.Services, t.objs.Services, compareNames,
		func(s *corev1.Service) { gone = append(gone, s) }, func(s *corev1.Service) { come = append(come, s) })
	switch n := len(gone) + len(come) + len(names); {
	case n == 0:
		return m.list, true
	case n > manyServices:
		return nil, false
	}
	list, before := slices.Clone(m.list), len(t.problems)
	for _, obj := range gone {
		m.claims.release(m.entries[obj])
		delete(m.entries, obj)
		if i, served := find(list, obj); served {
			list = slices.Delete(list, i, i+1)
		}
	}
	for _, obj := range come {
		if e := t.newEntry(obj); e.served {
			i, _ := find(list, obj)
			list = slices.Insert(list, i, e.service)
		}
	}
	for _, name := range names {
		if i, served := slices.BinarySearchFunc(list, name, compareServiceName); served {
			list[i] = t.newEndpoints(name, list[i])
		}
	}
	if len(t.problems) > before {
		t.problems = t.problems[:before] // they will be found again
		return nil, false
	}
	return list, true
}

// withEndpoints gives s with the endpoints in those slices.
func (t *translator) withEndpoints(s *services.Service, list []*discoveryv1.EndpointSlice) *services.Service {
	out := *s
	out.Endpoints = t.endpoints(list)
	return &out
}

// newEndpoints works out the endpoints of a Service that is served, as s.
func (t *translator) newEndpoints(name objectName, s *services.Service) *services.Service {
	m := t.memo
	i, _ := slices.BinarySearchFunc(t.objs.Services, name, func(s *corev1.Service, n objectName) int { return nameOf(s).compare(n) })
	obj, before := t.objs.Services[i], len(t.problems)
	e := m.entries[obj]
	if e == nil { // it has come just now, and there is something to say about it
		return s
	}
	e.slices = m.slicesOf[name]
	e.service = t.withEndpoints(s, e.slices)
	m.keep(obj, e, len(t.problems) == before)
	return e.service
}

// find gives the place of a Service in a list sorted by name, and whether it is there.
func find(list []*services.Service, obj *corev1.Service) (int, bool) {
	return slices.BinarySearchFunc(list, nameOf(obj), compareServiceName)
}

// group brings slicesOf up to date with a sorted list, and gives the names of the Services whose slices are others now.
func (m *Translator) group(now []*discoveryv1.EndpointSlice) []objectName {
	if m.slicesOf == nil {
		m.slicesOf = make(map[objectName][]*discoveryv1.EndpointSlice, len(now))
	}
	if kube.Same(m.objs.EndpointSlices, now) {
		return nil
	}
	var changed []objectName
	edit := func(s *discoveryv1.EndpointSlice, f func(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice) {
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
			key := objectName{s.Namespace, name}
			changed = append(changed, key)
			if list := f(m.slicesOf[key]); len(list) > 0 {
				m.slicesOf[key] = list
			} else {
				delete(m.slicesOf, key)
			}
		}
	}
	// Lists that were given out are not touched.
	difference(m.objs.EndpointSlices, now, compareNames, func(gone *discoveryv1.EndpointSlice) {
		edit(gone, func(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
			return slices.DeleteFunc(slices.Clone(list), func(s *discoveryv1.EndpointSlice) bool { return s == gone })
		})
	}, func(come *discoveryv1.EndpointSlice) {
		edit(come, func(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
			i, _ := slices.BinarySearchFunc(list, come, compareNames)
			return slices.Insert(slices.Clone(list), i, come)
		})
	})
	slices.SortFunc(changed, objectName.compare)
	return slices.Compact(changed)
}

// difference walks along two sorted lists and tells which objects are in one of them only.
func difference[T comparable](old, now []T, compare func(a, b T) int, gone, come func(T)) {
	if kube.Same(old, now) {
		return
	}
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(old) > 0 && len(now) > 0 && old[0] == now[0]:
			old, now = old[1:], now[1:]
		case len(now) == 0 || len(old) > 0 && compare(old[0], now[0]) <= 0:
			gone(old[0])
			old = old[1:]
		default:
			come(now[0])
			now = now[1:]
		}
	}
}
