package plan

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/kube/controlplane"
)

// dnsService is the Service that has the cluster DNS address. The agents answer at that address; the Service has no
// pods.
const dnsService = "kube-dns"

// addDNSService adds the Service for the DNS address, unless the files have it.
func (w *work) addDNSService() {
	for _, s := range w.objects.Services {
		if s.Namespace == metav1.NamespaceSystem && s.Name == dnsService {
			return
		}
	}
	prefer := corev1.IPFamilyPolicyPreferDualStack
	w.objects.Services = append(w.objects.Services, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: dnsService, Labels: map[string]string{"k8s-app": dnsService},
		},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &prefer,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
			},
		},
	})
}

// defaultService fills in what an API server fills in (k8s.io/kubernetes/pkg/apis/core/v1/defaults.go), except
// addresses.
func defaultService(s *corev1.Service) {
	spec := &s.Spec
	setDefault(&spec.Type, corev1.ServiceTypeClusterIP)
	setDefault(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		if spec.SessionAffinityConfig == nil || spec.SessionAffinityConfig.ClientIP == nil || spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		setDefault(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if spec.InternalTrafficPolicy == nil {
		cluster := corev1.ServiceInternalTrafficPolicyCluster
		spec.InternalTrafficPolicy = &cluster
	}
	if hasNodePorts(s) {
		setDefault(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

func setDefault[T ~string](field *T, value T) {
	if *field == "" {
		*field = value
	}
}

func hasNodePorts(s *corev1.Service) bool {
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		return s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts
	}
	return s.Spec.Type == corev1.ServiceTypeNodePort
}

func defaultIngress(ing *networkingv1.Ingress) {
	for _, rule := range ing.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		for i := range rule.HTTP.Paths {
			if rule.HTTP.Paths[i].PathType == nil {
				kind := networkingv1.PathTypeImplementationSpecific
				rule.HTTP.Paths[i].PathType = &kind
			}
		}
	}
}

// services gives every Service its cluster addresses and node ports: those that it asks for, else those that it has,
// else those that controlplane.Allocate chooses.
func (w *work) services() {
	taken := map[any]bool{}
	for _, s := range w.objects.Services {
		w.families(s)
		for _, ip := range s.Spec.ClusterIPs {
			taken[ip] = true
		}
		for _, p := range s.Spec.Ports {
			taken[nodePort{p.NodePort, p.Protocol}] = true
		}
	}
	for _, s := range w.objects.Services {
		if old, ok := w.old.services[serviceKey(s)]; ok {
			w.keepIPs(s, old, taken)
			keepPorts(s, old, taken)
		}
		if s.Namespace == metav1.NamespaceSystem && s.Name == dnsService {
			w.giveDNS(s, taken)
		}
	}
	allocated, problems := controlplane.Allocate(w.objects)
	for _, p := range problems {
		if p.Severity == kube.Error {
			w.errs = append(w.errs, p)
		}
	}
	w.objects = allocated
}

// loadBalancers gives Services of type LoadBalancer their addresses, as 'tapestry controller' does in a cluster. They
// keep what they have. Our own kinds get their status, once for a plan, since it says when it became what it is.
func (w *work) loadBalancers() {
	for _, s := range w.objects.Services {
		if old, ok := w.old.services[serviceKey(s)]; ok && len(s.Status.LoadBalancer.Ingress) == 0 {
			s.Status = *old.Status.DeepCopy()
		}
	}
	now := time.Now()
	out, problems := controller.LoadBalancers(w.objects, controller.Options{Default: true, Now: now})
	w.objects = controller.AnnounceStatus(controller.EgressStatus(out, now), now)
	for _, p := range problems {
		w.warnings = append(w.warnings, p.String())
	}
	for _, s := range w.objects.Services {
		w.next.services[serviceKey(s)] = s
	}
}

// nodePort is a port and protocol that a Service has on every node.
type nodePort struct {
	port     int32
	protocol corev1.Protocol
}

// giveDNS gives the DNS Service the default addresses, unless it asks for others.
func (w *work) giveDNS(s *corev1.Service, taken map[any]bool) {
	if len(s.Spec.ClusterIPs) > 0 {
		return
	}
	for _, f := range s.Spec.IPFamilies {
		for _, r := range w.ranges {
			a := nth(r, dnsPlace)
			if familyOf(a) == f && r.Contains(a) && !taken[a.String()] && len(s.Spec.ClusterIPs) < len(s.Spec.IPFamilies) {
				s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
				s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
				break
			}
		}
	}
}

func serviceKey(s *corev1.Service) string { return s.Namespace + "/" + s.Name }

func headless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// families sets spec.ipFamilies and spec.ipFamilyPolicy (KEP-563).
func (w *work) families(s *corev1.Service) {
	spec := &s.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if len(spec.IPFamilies) == 0 {
		for _, ip := range spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				spec.IPFamilies = append(spec.IPFamilies, familyOf(a))
			}
		}
	}
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if len(spec.IPFamilies) > 1 || len(spec.ClusterIPs) > 1 || headless(s) && len(spec.Selector) == 0 && len(spec.IPFamilies) == 0 && len(w.ranges) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec.IPFamilyPolicy = &policy
	}
	offered := w.offered()
	want := 2
	switch {
	case *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack:
		want = 1
	case *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && len(offered) < 2:
		w.fail(s, "spec.ipFamilyPolicy", "RequireDualStack needs ServiceCIDRs of both families, and there is only %v", offered)
	}
	for _, f := range offered {
		if len(spec.IPFamilies) < want && !slices.Contains(spec.IPFamilies, f) {
			spec.IPFamilies = append(spec.IPFamilies, f)
		}
	}
	if len(spec.IPFamilies) > want {
		w.fail(s, "spec.ipFamilies", "%v are more than the policy %s allows: use PreferDualStack", spec.IPFamilies, *spec.IPFamilyPolicy)
	}
}

// offered returns the families of the service ranges, in their order.
func (w *work) offered() []corev1.IPFamily {
	var out []corev1.IPFamily
	for _, r := range w.ranges {
		if f := familyOf(r.Addr()); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// keepIPs gives a Service the addresses that it had, if it needs addresses and asks for none.
func (w *work) keepIPs(s, old *corev1.Service, taken map[any]bool) {
	if s.Spec.Type == corev1.ServiceTypeExternalName || headless(s) || len(s.Spec.ClusterIPs) > 0 {
		return
	}
	for _, f := range s.Spec.IPFamilies {
		for _, text := range old.Spec.ClusterIPs {
			a, err := netip.ParseAddr(text)
			inRange := addressing.Contains(w.ranges, a)
			if err == nil && familyOf(a) == f && inRange && !taken[text] {
				taken[text] = true
				s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, text)
				s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
			}
		}
	}
}

func keepPorts(s, old *corev1.Service, taken map[any]bool) {
	if !hasNodePorts(s) {
		return
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		for _, q := range old.Spec.Ports {
			key := nodePort{q.NodePort, q.Protocol}
			if p.NodePort == 0 && q.NodePort != 0 && p.Port == q.Port && p.Protocol == q.Protocol && !taken[key] {
				p.NodePort = q.NodePort
				taken[key] = true
			}
		}
	}
}
