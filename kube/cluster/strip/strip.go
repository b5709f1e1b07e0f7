// Package strip reduces objects, as they arrive, to what Tapestry uses. That leaves a fiftieth of a Pod, and what
// changes most often (heartbeats, managed fields, the states of containers) is no longer a change. Package translate
// makes the same of an object before and after; a test in package cluster verifies that for all of its examples.
package strip

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/pins"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// meta keeps identity, version, times of creation and deletion, and the labels and annotations that Tapestry reads.
func meta(m *metav1.ObjectMeta, ours func(key string) bool) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
		Labels: only(m.Labels, ours), Annotations: only(m.Annotations, ours),
	}
}

func only(m map[string]string, ours func(key string) bool) map[string]string {
	var out map[string]string
	for k, v := range m {
		if ours(k) {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// ourKey reports whether Tapestry reads an annotation or label with that key, on any kind of object.
func ourKey(key string) bool {
	for _, prefix := range []string{"tapestry.dev/", "service.kubernetes.io/", "ingressclass.kubernetes.io/"} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return key == "kubernetes.io/ingress.class" || key == corev1.AnnotationLoadBalancerSourceRangesKey
}

// Service keeps the spec, without its selector, and the addresses that a load balancer assigned. One of type
// LoadBalancer keeps its labels, by which advertisements select it.
func Service(s *corev1.Service) {
	labels := s.Labels
	*s = corev1.Service{ObjectMeta: meta(&s.ObjectMeta, ourKey), Spec: s.Spec, Status: corev1.ServiceStatus{LoadBalancer: s.Status.LoadBalancer}}
	s.Spec.Selector = nil // the EndpointSlices list what it selects
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.Labels = labels
	}
}

// yes and no are shared by the conditions of all endpoints.
var yes, no = true, false

func shared(b *bool) *bool {
	switch {
	case b == nil:
		return nil
	case *b:
		return &yes
	}
	return &no
}

// EndpointSlice keeps what backends are made of. Equal names of nodes and zones share one string.
func EndpointSlice(s *discoveryv1.EndpointSlice) {
	names := map[string]*string{}
	intern := func(p *string) *string {
		if p == nil {
			return nil
		}
		if known := names[*p]; known != nil {
			return known
		}
		names[*p] = p
		return p
	}
	list := make([]discoveryv1.Endpoint, len(s.Endpoints))
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		list[i] = discoveryv1.Endpoint{
			Addresses: e.Addresses[:min(1, len(e.Addresses))], // clients use only the first (discovery/v1)
			Conditions: discoveryv1.EndpointConditions{
				Ready: shared(e.Conditions.Ready), Serving: shared(e.Conditions.Serving), Terminating: shared(e.Conditions.Terminating),
			},
			Hostname: e.Hostname, NodeName: intern(e.NodeName), Zone: intern(e.Zone), Hints: e.Hints,
		}
		if t := e.TargetRef; t != nil {
			list[i].TargetRef = &corev1.ObjectReference{Kind: t.Kind, Name: t.Name, UID: t.UID}
		}
	}
	*s = discoveryv1.EndpointSlice{
		ObjectMeta: meta(&s.ObjectMeta, func(key string) bool {
			return key == discoveryv1.LabelServiceName || key == corev1.EndpointsLastChangeTriggerTime
		}), AddressType: s.AddressType, Ports: s.Ports, Endpoints: list,
	}
}

// nodeKey reports whether Tapestry reads a label or annotation of Nodes with that key.
func nodeKey(key string) bool {
	return ourKey(key) || key == corev1.LabelTopologyZone || key == corev1.LabelTopologyRegion || pins.ControlPlaneKey(key)
}

// Node returns a function that keeps the ranges, labels, addresses and state of a Node. Of the nodes' problems it keeps
// only those of the node named own: those of the others change often, and nobody here reads them.
func Node(own string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		var conditions []corev1.NodeCondition
		for _, c := range n.Status.Conditions {
			switch c.Type {
			case corev1.NodeReady:
				conditions = append(conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status})
			case corev1.NodeNetworkUnavailable:
				conditions = append(conditions, corev1.NodeCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
			}
		}
		var taints []corev1.Taint
		if slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == kube.ToBeDeletedTaint }) {
			taints = []corev1.Taint{{Key: kube.ToBeDeletedTaint}}
		}
		labels := n.Labels // by which advertisements select it
		*n = corev1.Node{
			ObjectMeta: meta(&n.ObjectMeta, func(key string) bool {
				return nodeKey(key) && (key != kube.ProblemsAnnotation || n.Name == own)
			}),
			Spec:   corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, Taints: taints, Unschedulable: n.Spec.Unschedulable},
			Status: corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: conditions},
		}
		n.Labels = labels
	}
}

// Pod keeps the pod's node, names, addresses and hostPorts, and which kind of controller it has.
func Pod(p *corev1.Pod) {
	owners, labels := controllerOf(p), few(p.Labels) // EgressAddresses select pods by any of them
	*p = corev1.Pod{
		ObjectMeta: meta(&p.ObjectMeta, func(key string) bool { return ourKey(key) || key == corev1.MirrorPodAnnotationKey }),
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, Hostname: p.Spec.Hostname, Subdomain: p.Spec.Subdomain,
			InitContainers: onlyPorts(p.Spec.InitContainers), Containers: onlyPorts(p.Spec.Containers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	p.OwnerReferences, p.Labels = owners, labels
}

// few keeps labels, but of more than kube.MaxPodLabels only as many as show that there are more.
func few(labels map[string]string) map[string]string {
	if len(labels) <= kube.MaxPodLabels {
		return labels
	}
	out := make(map[string]string, kube.MaxPodLabels+1)
	for _, k := range slices.Sorted(maps.Keys(labels))[:kube.MaxPodLabels+1] {
		out[k] = labels[k]
	}
	return out
}

// controllerOf keeps the kind of a pod's controller.
func controllerOf(p *corev1.Pod) []metav1.OwnerReference {
	owner := metav1.GetControllerOfNoCopy(p)
	if owner == nil {
		return nil
	}
	return []metav1.OwnerReference{{Kind: owner.Kind, Controller: &yes}}
}

// OtherPod keeps the pod's node, names, labels, addresses and named ports.
func OtherPod(p *corev1.Pod) {
	labels := few(p.Labels)
	*p = corev1.Pod{
		ObjectMeta: meta(&p.ObjectMeta, func(string) bool { return false }),
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, InitContainers: onlyPorts(p.Spec.InitContainers), Containers: onlyPorts(p.Spec.Containers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	p.Labels = labels
}

// NetworkPolicy keeps the spec.
func NetworkPolicy(p *networkingv1.NetworkPolicy) {
	*p = networkingv1.NetworkPolicy{ObjectMeta: meta(&p.ObjectMeta, ourKey), Spec: p.Spec}
}

// ClusterNetworkPolicy keeps the spec.
func ClusterNetworkPolicy(p *policyapi.ClusterNetworkPolicy) {
	*p = policyapi.ClusterNetworkPolicy{ObjectMeta: meta(&p.ObjectMeta, ourKey), Spec: p.Spec}
}

// Namespace keeps the labels, by which policies select it.
func Namespace(n *corev1.Namespace) {
	labels := n.Labels
	*n = corev1.Namespace{ObjectMeta: meta(&n.ObjectMeta, ourKey)}
	n.Labels = labels
}

// onlyPorts keeps what hostPorts, and policies that name ports, need of containers: nothing when there are neither.
// Each container keeps its index.
func onlyPorts(list []corev1.Container) []corev1.Container {
	ofUse := func(p corev1.ContainerPort) bool { return p.HostPort != 0 || p.Name != "" }
	if !slices.ContainsFunc(list, func(c corev1.Container) bool { return slices.ContainsFunc(c.Ports, ofUse) }) {
		return nil
	}
	out := make([]corev1.Container, len(list))
	for i := range list {
		out[i] = corev1.Container{Ports: list[i].Ports, RestartPolicy: list[i].RestartPolicy}
	}
	return out
}

// Ingress keeps the spec.
func Ingress(i *networkingv1.Ingress) {
	*i = networkingv1.Ingress{ObjectMeta: meta(&i.ObjectMeta, ourKey), Spec: i.Spec}
}

// IngressClass keeps the name of the controller.
func IngressClass(c *networkingv1.IngressClass) {
	*c = networkingv1.IngressClass{ObjectMeta: meta(&c.ObjectMeta, ourKey), Spec: networkingv1.IngressClassSpec{Controller: c.Spec.Controller}}
}

// ServiceCIDR keeps the ranges.
func ServiceCIDR(c *networkingv1.ServiceCIDR) {
	*c = networkingv1.ServiceCIDR{ObjectMeta: meta(&c.ObjectMeta, ourKey), Spec: networkingv1.ServiceCIDRSpec{CIDRs: slices.Clone(c.Spec.CIDRs)}}
}

// AddressPool keeps the spec.
func AddressPool(p *v1alpha1.AddressPool) {
	*p = v1alpha1.AddressPool{ObjectMeta: meta(&p.ObjectMeta, ourKey), Spec: p.Spec}
}

// L2Advertisement keeps the spec.
func L2Advertisement(a *v1alpha1.L2Advertisement) {
	*a = v1alpha1.L2Advertisement{ObjectMeta: meta(&a.ObjectMeta, ourKey), Spec: a.Spec}
}

// BGPPeer keeps the spec.
func BGPPeer(p *v1alpha1.BGPPeer) {
	*p = v1alpha1.BGPPeer{ObjectMeta: meta(&p.ObjectMeta, ourKey), Spec: p.Spec}
}

// BGPAdvertisement keeps the spec.
func BGPAdvertisement(a *v1alpha1.BGPAdvertisement) {
	*a = v1alpha1.BGPAdvertisement{ObjectMeta: meta(&a.ObjectMeta, ourKey), Spec: a.Spec}
}

// EgressAddress keeps the spec.
func EgressAddress(a *v1alpha1.EgressAddress) {
	*a = v1alpha1.EgressAddress{ObjectMeta: meta(&a.ObjectMeta, ourKey), Spec: a.Spec}
}

// Secret keeps a key pair and nothing else.
func Secret(s *corev1.Secret) {
	data := map[string][]byte{}
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if v, ok := s.Data[key]; ok {
			data[key] = v
		}
	}
	*s = corev1.Secret{ObjectMeta: meta(&s.ObjectMeta, ourKey), Type: s.Type, Data: data}
}

// Metadata keeps the identity of an object. It is for kinds of which only the names are needed.
func Metadata(m *metav1.PartialObjectMetadata) {
	*m = metav1.PartialObjectMetadata{ObjectMeta: meta(&m.ObjectMeta, func(string) bool { return false })}
}
