package controller

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools"
)

// local knows at which nodes Services have endpoints that only nodes with endpoints serve.
type local struct {
	// nodes are the names of those that list an address as theirs. Each kubelet writes its own Node's, so an address
	// may be listed by several.
	nodes  map[netip.Addr][]string
	slices map[types.NamespacedName][]*discoveryv1.EndpointSlice
}

// localOf reads what is needed of a snapshot: nothing where no Service is local.
func localOf(objs *kube.Objects) *local {
	l := &local{nodes: map[netip.Addr][]string{}, slices: map[types.NamespacedName][]*discoveryv1.EndpointSlice{}}
	if !slices.ContainsFunc(objs.Services, kube.LocalBalancer) {
		return l
	}
	for _, n := range objs.Nodes {
		for _, at := range n.Status.Addresses {
			a, err := netip.ParseAddr(at.Address)
			if err != nil || at.Type != corev1.NodeInternalIP {
				continue
			}
			if list := l.nodes[a.Unmap()]; len(list) == 0 || list[len(list)-1] != n.Name { // a Node may repeat one
				l.nodes[a.Unmap()] = append(list, n.Name)
			}
		}
	}
	for _, es := range objs.EndpointSlices.All() {
		name := types.NamespacedName{Namespace: es.Namespace, Name: es.Labels[discoveryv1.LabelServiceName]}
		l.slices[name] = append(l.slices[name], es)
	}
	return l
}

// points returns the addresses of an assignment at which clients are served, and whether they are not all of them. Of a
// local Service at nodes' addresses these are the nodes with a ready endpoint. Where there is none, they are those
// whose endpoints terminate and still serve (KEP-1669). Where there are none either, they are all: clients are refused
// at once, and the list is there when an endpoint comes. Each family is decided by itself.
func (l *local) points(a *pools.Assignment) (list []netip.Addr, some bool) {
	if !a.OnNodes || !kube.LocalBalancer(a.Service) {
		return a.Addrs, false
	}
	for _, is4 := range []bool{true, false} {
		var all, ready, ending []netip.Addr
		readyOn, endingOn := l.endpoints(a.Service, is4)
		for _, addr := range a.Addrs {
			if addr.Is4() != is4 {
				continue
			}
			all = append(all, addr)
			if nodes := l.nodes[addr]; slices.ContainsFunc(nodes, func(n string) bool { return readyOn[n] }) {
				ready = append(ready, addr)
			} else if slices.ContainsFunc(nodes, func(n string) bool { return endingOn[n] }) {
				ending = append(ending, addr)
			}
		}
		switch {
		case len(ready) > 0:
			all = ready
		case len(ending) > 0:
			all = ending
		}
		list = append(list, all...)
	}
	return list, len(list) < len(a.Addrs)
}

// endpoints returns the nodes that have ready endpoints of a Service, and those that have some that terminate and still
// serve.
func (l *local) endpoints(svc *corev1.Service, is4 bool) (ready, ending map[string]bool) {
	ready, ending = map[string]bool{}, map[string]bool{}
	family := discoveryv1.AddressTypeIPv6
	if is4 {
		family = discoveryv1.AddressTypeIPv4
	}
	for _, es := range l.slices[nameOf(svc)] {
		if es.AddressType != family {
			continue
		}
		for i := range es.Endpoints {
			e := &es.Endpoints[i]
			// An absent condition counts as ready, and as serving when ready (discovery/v1 EndpointConditions).
			is := func(b *bool, absent bool) bool { return b == nil && absent || b != nil && *b }
			isReady := is(e.Conditions.Ready, true) || svc.Spec.PublishNotReadyAddresses
			switch {
			case e.NodeName == nil:
			case isReady:
				ready[*e.NodeName] = true
			case is(e.Conditions.Serving, isReady) && is(e.Conditions.Terminating, false):
				ending[*e.NodeName] = true
			}
		}
	}
	return ready, ending
}
