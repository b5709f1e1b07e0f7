package controlplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
)

// managedBy marks the EndpointSlices made here, as every controller must do (discovery/v1 LabelManagedBy).
const managedBy = "tapestry.dev/endpointslices"

// EndpointSlices returns the slices of all Services with a selector, sorted by namespace and name. A Service has one
// slice per family. It has further slices when a named target port has different numbers in its pods. A Service that
// selects no pod has empty slices.
func EndpointSlices(pods []*corev1.Pod, services []*corev1.Service) []*discoveryv1.EndpointSlice {
	byNamespace := map[string][]*corev1.Pod{}
	for _, p := range pods {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			byNamespace[p.Namespace] = append(byNamespace[p.Namespace], p)
		}
	}
	for _, list := range byNamespace {
		slices.SortFunc(list, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	}
	var all []*discoveryv1.EndpointSlice
	for _, svc := range services {
		if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
			continue // somebody else writes its slices, or it has none
		}
		var selected []*corev1.Pod
		for _, p := range byNamespace[svc.Namespace] {
			if Selects(svc, p) {
				selected = append(selected, p)
			}
		}
		for _, family := range familiesOf(svc) {
			all = append(all, slicesOfFamily(svc, selected, family)...)
		}
	}
	slices.SortFunc(all, func(a, b *discoveryv1.EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// Selects reports whether the selector of svc matches the pod. An empty selector matches no pod.
func Selects(svc *corev1.Service, pod *corev1.Pod) bool {
	for key, want := range svc.Spec.Selector {
		if got, ok := pod.Labels[key]; !ok || got != want {
			return false
		}
	}
	return len(svc.Spec.Selector) > 0 && svc.Namespace == pod.Namespace
}

// familiesOf returns the families of a Service: those in its spec, else those of its addresses, else both.
func familiesOf(svc *corev1.Service) []discoveryv1.AddressType {
	var list []discoveryv1.AddressType
	add := func(v6 bool) {
		t := discoveryv1.AddressTypeIPv4
		if v6 {
			t = discoveryv1.AddressTypeIPv6
		}
		if !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	for _, f := range svc.Spec.IPFamilies {
		add(f == corev1.IPv6Protocol)
	}
	if len(list) > 0 {
		return list
	}
	for _, text := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(text); err == nil {
			add(a.Is6())
		}
	}
	if len(list) > 0 {
		return list
	}
	return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
}

// slicesOfFamily returns one slice for each list of port numbers that the Service has on its pods.
func slicesOfFamily(svc *corev1.Service, pods []*corev1.Pod, family discoveryv1.AddressType) []*discoveryv1.EndpointSlice {
	name := svc.Name + "-" + strings.ToLower(string(family))
	first := newSlice(svc, name, family)
	groups := map[string]*discoveryv1.EndpointSlice{}
	var order []string
	for _, p := range pods {
		addr := podAddr(p, family)
		if addr == "" {
			continue
		}
		ports := podPorts(svc, p)
		key := portsKey(ports)
		s := groups[key]
		if s == nil {
			s = newSlice(svc, name, family)
			s.Ports = ports
			groups[key] = s
			order = append(order, key)
		}
		s.Endpoints = append(s.Endpoints, podEndpoint(svc, p, addr))
	}
	if len(groups) == 0 {
		return []*discoveryv1.EndpointSlice{first}
	}
	slices.Sort(order)
	list := make([]*discoveryv1.EndpointSlice, 0, len(order))
	for i, key := range order {
		s := groups[key]
		if i > 0 {
			s.Name = name + "-" + strconv.Itoa(i+1)
		}
		list = append(list, s)
	}
	return list
}

func newSlice(svc *corev1.Service, name string, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: svc.Namespace,
			Name:      name,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: svc.Name,
				discoveryv1.LabelManagedBy:   managedBy,
			},
		},
		AddressType: family,
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	return s
}

func podAddr(p *corev1.Pod, family discoveryv1.AddressType) string {
	for _, text := range kube.PodIPs(p) {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() == (family == discoveryv1.AddressTypeIPv4) {
			return a.String()
		}
	}
	return ""
}

// podPorts returns the target ports of a Service on one pod. It leaves out a named port that the pod does not have.
func podPorts(svc *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var list []discoveryv1.EndpointPort
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		protocol := cmp.Or(sp.Protocol, corev1.ProtocolTCP)
		if number := targetPort(sp, protocol, p); number != 0 {
			name := sp.Name
			list = append(list, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &protocol, AppProtocol: sp.AppProtocol})
		}
	}
	return list
}

func targetPort(sp *corev1.ServicePort, protocol corev1.Protocol, p *corev1.Pod) int32 {
	if sp.TargetPort.Type == intstr.Int {
		return cmp.Or(sp.TargetPort.IntVal, sp.Port)
	}
	if sp.TargetPort.StrVal == "" {
		return sp.Port
	}
	named := func(c *corev1.Container) int32 {
		for _, cp := range c.Ports {
			if cp.Name == sp.TargetPort.StrVal && cmp.Or(cp.Protocol, corev1.ProtocolTCP) == protocol {
				return cp.ContainerPort
			}
		}
		return 0
	}
	for i := range p.Spec.Containers {
		if n := named(&p.Spec.Containers[i]); n != 0 {
			return n
		}
	}
	for i := range p.Spec.InitContainers { // a sidecar is an init container that keeps running (KEP-753)
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if n := named(c); n != 0 {
				return n
			}
		}
	}
	return 0
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s/%s/%05d ", *p.Name, *p.Protocol, *p.Port)
	}
	return b.String()
}

func podEndpoint(svc *corev1.Service, p *corev1.Pod, addr string) discoveryv1.Endpoint {
	serving := podReady(p)
	terminating := p.DeletionTimestamp != nil
	// A terminating pod is never ready, unless the Service publishes all addresses (KEP-1672).
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{addr},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		node := p.Spec.NodeName
		e.NodeName = &node
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == svc.Name {
		hostname := p.Spec.Hostname
		e.Hostname = &hostname
	}
	return e
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
