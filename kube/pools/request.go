package pools

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/kube"
)

// These annotations are MetalLB's, of two of its generations. A Service that was written for it means the same here.
var (
	metalPool  = []string{"metallb.io/address-pool", "metallb.universe.tf/address-pool"}
	metalIPs   = []string{"metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"}
	metalShare = []string{"metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"}
)

// request is what a Service asks for.
type request struct {
	svc *corev1.Service
	// families are wanted in this order. both is set when none of them may be missing.
	families []bool // is IPv4
	both     bool
	// addrs are the addresses that it asks for, at most one of a family; nil for any.
	addrs []netip.Addr
	// pool is the pool that it asks for, or "".
	pool string
	// key is what Services that share an address have in common, or "".
	key string
}

// Ours reports whether a Service is a load balancer that is served here: of our class, or, when orNone is set, of none.
func Ours(svc *corev1.Service, orNone bool) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if svc.Spec.LoadBalancerClass == nil {
		return orNone
	}
	return *svc.Spec.LoadBalancerClass == Class
}

// read returns what a Service asks for. It returns false when that cannot be understood, and has reported why.
func read(svc *corev1.Service, say *kube.Report) (r request, ok bool) {
	r.svc = svc
	for _, f := range svc.Spec.IPFamilies {
		r.families = append(r.families, f == corev1.IPv4Protocol)
	}
	if len(r.families) == 0 { // an API server fills them in
		for _, text := range svc.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(text); err == nil {
				r.families = append(r.families, a.Is4())
			}
		}
	}
	r.both = svc.Spec.IPFamilyPolicy != nil && *svc.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack
	r.pool, _ = annotation(svc, kube.AddressPoolAnnotation, metalPool)
	r.key, _ = annotation(svc, kube.SharedAddressAnnotation, metalShare)
	ok = r.readAddrs(say)
	return r, ok
}

// readAddrs reads the addresses that a Service asks for. The annotation, which can hold two, comes before the field.
func (r *request) readAddrs(say *kube.Report) bool {
	text, field := annotation(r.svc, kube.AddressesAnnotation, metalIPs)
	if text == "" {
		text, field = r.svc.Spec.LoadBalancerIP, "spec.loadBalancerIP"
	}
	if text == "" {
		return true
	}
	ref := kube.RefOf(r.svc)
	for _, part := range strings.Split(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		a = a.Unmap()
		switch {
		case err != nil || a.Zone() != "":
			say.Errorf(ref, field, "%.300q is no address: expected one like 192.0.2.7, or two of different families with a comma between", part)
		case !slices.Contains(r.families, a.Is4()):
			say.Errorf(ref, field, "%s is an %s address, and the Service has none of that family: add it to spec.ipFamilies, or ask for another", a, familyOf(a.Is4()))
		case slices.ContainsFunc(r.addrs, func(b netip.Addr) bool { return a.Is4() == b.Is4() }):
			say.Errorf(ref, field, "%.300q asks for two addresses of one family: keep one", text)
		default:
			r.addrs = append(r.addrs, a)
			continue
		}
		r.addrs = nil
		return false
	}
	return true
}

// annotation returns the value of the annotation with our name, or of the first of other names that there is, and where
// it stands.
func annotation(svc *corev1.Service, name string, others []string) (value, field string) {
	for _, key := range append([]string{name}, others...) {
		if v := strings.TrimSpace(svc.Annotations[key]); v != "" {
			return v, "metadata.annotations[" + key + "]"
		}
	}
	return "", "metadata.annotations[" + name + "]"
}

func familyOf(is4 bool) corev1.IPFamily {
	if is4 {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// port is a port that one Service has at an address.
type port struct {
	number   int32
	protocol corev1.Protocol
}

func portOf(number int32, protocol corev1.Protocol) port {
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	return port{number, protocol}
}

func portsOf(svc *corev1.Service) (list []port) {
	for i := range svc.Spec.Ports {
		list = append(list, portOf(svc.Spec.Ports[i].Port, svc.Spec.Ports[i].Protocol))
	}
	return list
}

// portsIn returns the ports that a status names.
func portsIn(s *corev1.LoadBalancerStatus) (list []port) {
	for i := range s.Ingress {
		for _, p := range s.Ingress[i].Ports {
			list = append(list, portOf(p.Port, p.Protocol))
		}
	}
	return list
}

// class is who may have one address together: Services with a key in common, in one namespace, and with the same idea
// of which nodes serve it. Where they are local to a node, that takes the same pods. The zero class shares with nobody.
type class struct{ namespace, key, policy, pods string }

func (r *request) class() class {
	s := &r.svc.Spec
	local := s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if r.key == "" || local && len(s.Selector) == 0 {
		return class{}
	}
	c := class{namespace: r.svc.Namespace, key: r.key, policy: string(s.ExternalTrafficPolicy)}
	if local {
		c.pods = labels.FormatLabels(s.Selector)
	}
	return c
}

// shares reports whether Services of two classes may have one address together.
func (c class) shares(o class) bool { return c != class{} && c == o }
