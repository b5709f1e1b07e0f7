// Package whois says who has an address of the cluster: a pod or a node, out of a snapshot of its objects. It is pure.
//
// Pods of other nodes are known by what Services lead to, and all of them where there are policies. What is known of a
// pod's labels is what the snapshot keeps of them.
package whois

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// Who is a pod or, without a name of one, a node.
type Who struct {
	Namespace, Pod string
	Node           string
	Labels         map[string]string
	// since is when the pod was made, to a second; zero if it is not known.
	since time.Time
}

// Book says who has which address. It never changes.
type Book struct{ at map[netip.Addr]*Who }

// Of returns the Book of a snapshot; nil is an empty one. What takes time is every pod and endpoint of it once.
func Of(objs *kube.Objects) *Book {
	b := &Book{at: map[netip.Addr]*Who{}}
	if objs == nil {
		return b
	}
	for _, p := range objs.Pods {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		w := &Who{Namespace: p.Namespace, Pod: p.Name, Node: p.Spec.NodeName, Labels: p.Labels, since: p.CreationTimestamp.Time}
		for _, text := range kube.PodIPs(p) {
			if a, err := netip.ParseAddr(text); err == nil {
				b.add(a, w)
			}
		}
	}
	for _, p := range objs.OtherPods.All() {
		w := &Who{Namespace: p.Namespace, Pod: p.Name, Node: p.Node, Labels: p.Labels, since: p.CreationTimestamp.Time}
		for _, a := range p.Addrs {
			b.add(a, w)
		}
	}
	for _, n := range objs.Nodes {
		w := &Who{Node: n.Name}
		for i := range n.Status.Addresses {
			if a, err := netip.ParseAddr(n.Status.Addresses[i].Address); err == nil {
				b.add(a, w)
			}
		}
	}
	b.addEndpoints(objs)
	return b
}

// addEndpoints adds pods of which nothing is known but that Services lead to them. A pod with the network of its node
// has the node's address, which is known by then.
func (b *Book) addEndpoints(objs *kube.Objects) {
	for _, s := range objs.EndpointSlices.All() {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
				continue
			}
			w := &Who{Namespace: s.Namespace, Pod: e.TargetRef.Name}
			if e.NodeName != nil {
				w.Node = *e.NodeName
			}
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					b.add(a, w)
				}
			}
		}
	}
}

// add gives an address to who claims it first.
func (b *Book) add(a netip.Addr, w *Who) {
	if a = a.Unmap(); b.at[a] == nil {
		b.at[a] = w
	}
}

// At returns who has an address, and had it at that time as far as is known; nil for nobody.
func (b *Book) At(a netip.Addr, when time.Time) *Who {
	w := b.at[a.Unmap()]
	if w != nil && w.since.After(when) { // whoever had the address then is gone
		return nil
	}
	return w
}
