package controller

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// Options say how a cluster's decisions are made.
type Options struct {
	// Default serves Services of type LoadBalancer that name no class.
	Default bool
	// Now is when conditions that change have changed.
	Now time.Time
}

// The conditions of Services of type LoadBalancer.
const (
	// LoadBalancerCondition is True when a Service has all addresses that it can have.
	LoadBalancerCondition = pools.Condition
	// UnsupportedCondition is True when a port of the Service is not served at its addresses.
	UnsupportedCondition = "tapestry.dev/Unsupported"
)

// Finalizer is on each Service while it has its addresses from here, as it is with every service controller (KEP-980).
// Whoever looks at the Service can see that somebody looks after it.
const Finalizer = "service.kubernetes.io/load-balancer-cleanup"

// LoadBalancers gives Services of type LoadBalancer their addresses, and AddressPools their status. It returns a new
// snapshot with changed copies of the objects that have another status, or another finalizer.
func LoadBalancers(objs kube.Objects, o Options) (kube.Objects, []kube.Problem) {
	plan := pools.Assign(&objs, o.Default)
	assigned := make(map[types.NamespacedName]*pools.Assignment, len(plan.Services))
	for i := range plan.Services {
		assigned[nameOf(plan.Services[i].Service)] = &plan.Services[i]
	}
	now := metav1.NewTime(o.Now.Truncate(time.Second))
	l := localOf(&objs)
	objs.Services = changed(objs.Services, func(svc *corev1.Service) bool { return assigned[nameOf(svc)] != nil || served(svc) }, func(svc *corev1.Service) {
		if a := assigned[nameOf(svc)]; a != nil {
			serve(svc, a, l, now)
		} else {
			leave(svc)
		}
	})
	objs.AddressPools = changed(objs.AddressPools, every, func(p *v1alpha1.AddressPool) {
		p.Status = poolStatus(p, plan.Pools[p.Name], now)
	})
	return objs, (&kube.Report{Problems: plan.Problems}).Sorted(objs.Origin)
}

func nameOf(svc *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
}

// served reports whether a Service was given what it has from here. The finalizer of one of our class is ours, also
// when somebody has overwritten the conditions: nobody else would remove it.
func served(svc *corev1.Service) bool {
	class := svc.Spec.LoadBalancerClass
	return meta.FindStatusCondition(svc.Status.Conditions, LoadBalancerCondition) != nil ||
		class != nil && *class == pools.Class && slices.Contains(svc.Finalizers, Finalizer)
}

// leave takes from a Service what it had from here. What another controller has written is its own.
func leave(svc *corev1.Service) {
	s := &svc.Status
	s.LoadBalancer.Ingress = nil
	s.Conditions = withoutCondition(withoutCondition(s.Conditions, LoadBalancerCondition), UnsupportedCondition)
	svc.Finalizers = slices.DeleteFunc(svc.Finalizers, func(f string) bool { return f == Finalizer })
	if len(svc.Finalizers) == 0 {
		svc.Finalizers = nil
	}
}

// serve says on a Service what it has, and what it lacks.
func serve(svc *corev1.Service, a *pools.Assignment, l *local, now metav1.Time) {
	s := &svc.Status
	if !slices.Contains(svc.Finalizers, Finalizer) {
		svc.Finalizers = append(svc.Finalizers, Finalizer)
	}
	addrs, some := l.points(a)
	s.LoadBalancer.Ingress = ingressPoints(svc, a, addrs)
	c := metav1.Condition{Type: LoadBalancerCondition, Status: metav1.ConditionTrue, Reason: pools.Assigned, Message: message(a, some)}
	if a.OnNodes {
		c.Reason = pools.OnNodes
	}
	if a.Reason != "" {
		c = metav1.Condition{Type: LoadBalancerCondition, Status: metav1.ConditionFalse, Reason: a.Reason, Message: a.Message}
	}
	setCondition(&s.Conditions, c, svc.Generation, now)
	if unsupported(svc, a) > 0 {
		setCondition(&s.Conditions, metav1.Condition{Type: UnsupportedCondition, Status: metav1.ConditionTrue, Reason: "SCTP",
			Message: "SCTP ports are not served at addresses of nodes, since hosts' sockets do not pass SCTP on: use an AddressPool with addresses of its own"}, svc.Generation, now)
	} else {
		s.Conditions = withoutCondition(s.Conditions, UnsupportedCondition)
	}
}

// message says where the addresses are from. some is set when the status has not all of them.
func message(a *pools.Assignment, some bool) string {
	text := "from AddressPool " + a.Pool
	switch {
	case a.Pool == "":
		text = "its addresses are in no AddressPool any longer"
	case some:
		text += ", those of its nodes that have endpoints (externalTrafficPolicy: Local)"
	}
	if a.Apart != "" {
		text += "; " + a.Apart
	}
	return text
}

func unsupported(svc *corev1.Service, a *pools.Assignment) (n int) {
	for i := range svc.Spec.Ports {
		if a.OnNodes && svc.Spec.Ports[i].Protocol == corev1.ProtocolSCTP {
			n++
		}
	}
	return n
}

// ingressPoints returns status.loadBalancer.ingress, with those addresses of the assignment. Points of nodes that put
// the PROXY protocol before connections have ipMode Proxy: inside the cluster, too, connections have to go through them
// (KEP-1860). Where other Services may be at the addresses, the first point names the ports that this one has there, so
// that it is known who had a port first.
func ingressPoints(svc *corev1.Service, a *pools.Assignment, addrs []netip.Addr) (list []corev1.LoadBalancerIngress) {
	mode := corev1.LoadBalancerIPModeVIP
	if version, _ := kube.ProxyProtocol(svc); a.OnNodes && version != 0 {
		mode = corev1.LoadBalancerIPModeProxy
	}
	for i, addr := range addrs {
		in := corev1.LoadBalancerIngress{IP: addr.String(), IPMode: &mode}
		if unsupported(svc, a) > 0 || a.Shared && i == 0 {
			in.Ports = portStatuses(svc, a)
		}
		list = append(list, in)
	}
	return list
}

// portStatuses returns the state of all ports, as a list that names one has to.
func portStatuses(svc *corev1.Service, a *pools.Assignment) (list []corev1.PortStatus) {
	for i := range svc.Spec.Ports {
		p := corev1.PortStatus{Port: svc.Spec.Ports[i].Port, Protocol: svc.Spec.Ports[i].Protocol}
		if a.OnNodes && p.Protocol == corev1.ProtocolSCTP {
			reason := UnsupportedCondition
			p.Error = &reason
		}
		list = append(list, p)
	}
	return list
}

func poolStatus(p *v1alpha1.AddressPool, u pools.Usage, now metav1.Time) v1alpha1.AddressPoolStatus {
	s := *p.Status.DeepCopy()
	s.Assigned, s.Free = u.Assigned, u.Free
	ready := metav1.Condition{Type: v1alpha1.PoolReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "all of its addresses can be assigned"}
	if len(u.Faults) > 0 {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Unusable", faultText(u.Faults)
	}
	setCondition(&s.Conditions, ready, p.Generation, now)
	free := metav1.Condition{Type: v1alpha1.PoolFree, Status: metav1.ConditionTrue, Reason: "Free", Message: "it has addresses to give"}
	if u.Free == 0 {
		free.Status, free.Reason, free.Message = metav1.ConditionFalse, "Exhausted", "it has no address to give"
	}
	setCondition(&s.Conditions, free, p.Generation, now)
	return s
}
