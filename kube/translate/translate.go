// Package translate turns the objects of a cluster into the configurations of the data plane, as one node sees them, and
// into statuses. It is pure: it looks at no clock, no file and no network, gives the same Result for the same Objects, and
// leaves the Objects as they are. What cannot be used is left out and told as a Problem; everything else keeps working.
//
// Translate is the definition. A Translator gives the same faster to whoever translates one snapshot after the other: it
// works out anew only what follows from objects that were not there before.
package translate

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
)

// WireGuardPort is where a Node without kube.EndpointAnnotation is expected to listen.
const WireGuardPort = 51820

// Options is what a node knows of itself and no object says.
type Options struct {
	// Node is this node's name.
	Node string
	// UnderlayMTU is the MTU in bytes of the network between the nodes, 0 for addressing.DefaultUnderlayMTU.
	UnderlayMTU int
	// ExternalIPs has spec.externalIPs of Services honoured, with which whoever may write a Service takes over any address
	// (CVE-2020-8554).
	ExternalIPs bool
}

// Result is everything that follows from a snapshot of the cluster. Its lists are sorted, so that equal clusters give equal
// Results.
type Result struct {
	Netstack netstack.Config
	Overlay  overlay.Config
	Services services.Config
	Ingress  ingress.Config
	// Leaving is set when this node is being deleted, so that load balancers should send nothing here any more.
	Leaving bool
	// Statuses are what the Ingresses this cluster serves should say of themselves.
	Statuses []IngressStatus
	// Problems are the objects or fields that were left out or look wrong, errors first.
	Problems []kube.Problem
}

// IngressStatus is the status of one Ingress.
type IngressStatus struct {
	Namespace, Name string
	LoadBalancer    networkingv1.IngressLoadBalancerStatus
}

// Translate gives what follows from objs for the node of o.
func Translate(objs kube.Objects, o Options) Result { return new(Translator).Translate(objs, o) }

// Check gives the problems of objs that are the same for every node, those of TLS Secrets nobody uses included.
func Check(objs kube.Objects) []kube.Problem {
	t := newTranslator(objs, Options{}, new(Translator))
	nodes := t.nodes()
	t.ingresses(nodes, t.services(nodes, t.serviceRanges()).Services)
	for _, s := range t.objs.Secrets {
		if s.Type == corev1.SecretTypeTLS {
			t.keyPair(s)
		}
	}
	return t.sorted()
}

func newTranslator(objs kube.Objects, o Options, memo *Translator) *translator {
	objs = objs.Sorted(&memo.objs)
	o.UnderlayMTU = cmp.Or(o.UnderlayMTU, addressing.DefaultUnderlayMTU)
	t := &translator{objs: &objs, options: o, memo: memo, zones: map[string]string{}}
	for _, n := range objs.Nodes {
		t.zones[n.Name] = n.Labels[corev1.LabelTopologyZone]
	}
	return t
}

// sorted gives the problems, each once.
func (t *translator) sorted() []kube.Problem {
	kube.SortProblems(t.problems)
	return slices.Compact(t.problems)
}

type translator struct {
	objs     *kube.Objects
	options  Options
	memo     *Translator
	zones    map[string]string // by node name
	problems []kube.Problem
}

func (t *translator) problem(s kube.Severity, ref kube.Ref, field, message string) {
	t.problems = append(t.problems, kube.Problem{
		Severity: s, Object: ref, Origin: t.objs.Origin[ref], Field: field, Message: message,
	})
}

func (t *translator) errorf(ref kube.Ref, field, format string, args ...any) {
	t.problem(kube.Error, ref, field, fmt.Sprintf(format, args...))
}

func (t *translator) warnf(ref kube.Ref, field, format string, args ...any) {
	t.problem(kube.Warning, ref, field, fmt.Sprintf(format, args...))
}
