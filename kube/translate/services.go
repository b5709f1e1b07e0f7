package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// Labels of Services that are not to be proxied; DNS answers for them all the same.
const (
	// proxyNameLabel says that another proxy serves the Service (KEP-2447).
	proxyNameLabel = "service.kubernetes.io/service-proxy-name"
	// headlessLabel says that the ClusterIP is to lead nowhere, as kube-proxy takes it.
	headlessLabel = corev1.IsHeadlessService
)

// defaultAffinity is how long ClientIP affinity lasts unless the Service says otherwise (v1 ClientIPConfig).
const defaultAffinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second

// The service ranges of a cluster that has no ServiceCIDR objects.
var defaultServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}

// dnsIndex is the number of the address in a service range that serves DNS, as kubeadm counts.
const dnsIndex = 10

func (t *translator) serviceRanges() []netip.Prefix {
	var list []netip.Prefix
	for _, obj := range t.objs.ServiceCIDRs {
		for i, text := range obj.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				t.errorf(kube.RefOf(obj), index("spec.cidrs", i), "%q is not a prefix: expected one like 10.96.0.0/16", text)
				continue
			}
			p = p.Masked()
			if !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	if len(list) == 0 {
		return slices.Clone(defaultServiceCIDRs)
	}
	slices.SortFunc(list, comparePrefix)
	return list
}

func (t *translator) services(nodes []node, ranges []netip.Prefix) services.Config {
	c := services.Config{Node: t.options.Node, ServiceCIDRs: ranges}
	var byAddr []nodeAddr
	for i := range nodes {
		n := &nodes[i]
		c.ClusterCIDRs = append(c.ClusterCIDRs, n.podCIDRs...)
		if n.name == t.options.Node {
			c.Zone = n.zone
			c.OwnAddrs = n.addrs
		}
		if !n.stock { // nobody would answer there
			for _, a := range n.addrs {
				byAddr = append(byAddr, nodeAddr{a, n.name})
			}
		}
	}
	slices.SortFunc(byAddr, func(a, b nodeAddr) int { return a.addr.Compare(b.addr) })
	for _, a := range byAddr {
		c.NodeAddrs, c.NodeNames = append(c.NodeAddrs, a.addr), append(c.NodeNames, a.name)
	}
	slices.SortFunc(c.ClusterCIDRs, comparePrefix)

	c.Services = t.serviceList()
	c.DNSAddrs = dnsAddrs(c.Services, ranges)
	c.Pods = t.pods()
	c.HostPorts = t.hostPorts()
	return c
}

// nodeAddr is an address of a node.
type nodeAddr struct {
	addr netip.Addr
	name string
}

type objectName struct{ namespace, name string }

func nameOf(obj metav1.Object) objectName { return objectName{obj.GetNamespace(), obj.GetName()} }

func (n objectName) compare(other objectName) int {
	return cmp.Or(cmp.Compare(n.namespace, other.namespace), cmp.Compare(n.name, other.name))
}

// compareNames has objects in the order of a snapshot.
func compareNames[T metav1.Object](a, b T) int { return nameOf(a).compare(nameOf(b)) }

// compareServiceName is for searching lists of Services, which are sorted by name.
func compareServiceName(s *services.Service, n objectName) int {
	return objectName{s.Namespace, s.Name}.compare(n)
}

// serviceClaims remembers which Service has what.
type serviceClaims struct {
	ips       map[netip.Addr]kube.Ref
	nodePorts map[portKey]kube.Ref
	// What the Service that is looked at has got.
	ownIPs   []netip.Addr
	ownPorts []portKey
}

type portKey struct {
	port  uint16
	proto packet.Proto
}

// service reports false for a Service that has nothing clients could use, which is told as a problem.
func (t *translator) service(obj *corev1.Service, claims *serviceClaims) (services.Service, bool) {
	ref := kube.RefOf(obj)
	s := services.Service{
		Namespace:       obj.Namespace,
		Name:            obj.Name,
		PublishNotReady: obj.Spec.PublishNotReadyAddresses,
		NamesOnly:       namesOnly(obj),
	}
	if obj.Spec.Type == corev1.ServiceTypeExternalName {
		s.ExternalName = obj.Spec.ExternalName
		if s.ExternalName == "" {
			t.errorf(ref, "spec.externalName", "is missing: a Service of type ExternalName needs a DNS name")
		}
		return s, s.ExternalName != ""
	}
	headless := obj.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(obj.Spec.ClusterIPs, corev1.ClusterIPNone)
	if !headless {
		s.ClusterIPs = t.clusterIPs(obj, ref, claims)
	}
	s.Ports = t.ports(obj, ref, claims)
	if len(s.Ports) == 0 && len(obj.Spec.Ports) == 0 && !headless {
		t.errorf(ref, "spec.ports", "is empty: add a port, or make the Service headless (clusterIP: None)")
	}
	if obj.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.Affinity = t.affinity(obj, ref)
	}
	s.InternalLocal = obj.Spec.InternalTrafficPolicy != nil && *obj.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	s.ExternalLocal = obj.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	s.ExternalIPs = t.externalIPs(obj, ref)
	s.SourceRanges = t.sourceRanges(obj, ref)
	if obj.Spec.Type == corev1.ServiceTypeLoadBalancer && s.ExternalLocal {
		s.HealthPort, _ = portOf(obj.Spec.HealthCheckNodePort)
	}
	return s, headless || len(s.ClusterIPs) > 0 // without, it would pass for headless
}

func namesOnly(obj *corev1.Service) bool {
	_, other := obj.Labels[proxyNameLabel]
	_, headless := obj.Labels[headlessLabel]
	return other || headless
}

// sourceRanges are the clients that the load balancer's addresses are for; nil for all. When none of what is written can be
// read, nobody is let in.
func (t *translator) sourceRanges(obj *corev1.Service, ref kube.Ref) []netip.Prefix {
	if obj.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	field, texts := "spec.loadBalancerSourceRanges", obj.Spec.LoadBalancerSourceRanges
	if text := obj.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; len(texts) == 0 && strings.TrimSpace(text) != "" {
		field, texts = annotation(corev1.AnnotationLoadBalancerSourceRangesKey), strings.Split(text, ",")
	}
	if len(texts) == 0 {
		return nil
	}
	list := []netip.Prefix{}
	for i, text := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			t.errorf(ref, index(field, i), "%q is not a prefix: expected one like 192.0.2.0/24; until then these clients are kept out", text)
			continue
		}
		list = append(list, p.Masked())
	}
	return list
}

func (t *translator) clusterIPs(obj *corev1.Service, ref kube.Ref, claims *serviceClaims) []netip.Addr {
	field, texts := "spec.clusterIPs", obj.Spec.ClusterIPs
	if len(texts) == 0 && obj.Spec.ClusterIP != "" {
		field, texts = "spec.clusterIP", []string{obj.Spec.ClusterIP}
	}
	if len(texts) == 0 {
		t.errorf(ref, "spec.clusterIP", "is missing and nobody here assigns one: write an address out of the service range, or None")
	}
	var list []netip.Addr
	for i, text := range texts {
		if field != "spec.clusterIP" {
			field = index("spec.clusterIPs", i)
		}
		addr, ok := t.serviceAddr(text, ref, field)
		if !ok {
			continue
		}
		if owner, taken := claims.ips[addr]; taken {
			t.errorf(ref, field, "%s belongs to %s already: choose another address", addr, owner)
			continue
		}
		claims.ips[addr] = ref
		claims.ownIPs = append(claims.ownIPs, addr)
		list = append(list, addr)
	}
	return list
}

// serviceAddr parses an address that clients may use for a Service.
func (t *translator) serviceAddr(text string, ref kube.Ref, field string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || unusable(addr) {
		t.errorf(ref, field, "%q is no address a Service could have: expected one like 10.96.3.7", text)
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// unusable addresses mean something to the host itself; a packet to them must never be made (the API server refuses them in
// endpoints for the same reason).
func unusable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

func (t *translator) ports(obj *corev1.Service, ref kube.Ref, claims *serviceClaims) []services.Port {
	hasNodePorts := obj.Spec.Type == corev1.ServiceTypeNodePort || obj.Spec.Type == corev1.ServiceTypeLoadBalancer
	var list []services.Port
	taken := map[portKey]bool{}
	for i, p := range obj.Spec.Ports {
		field := index("spec.ports", i)
		proto, ok := protoOf(p.Protocol)
		if !ok {
			t.errorf(ref, field+".protocol", "%q is not a protocol of Services: expected TCP, UDP or SCTP", p.Protocol)
			continue
		}
		port, ok := portOf(p.Port)
		if !ok {
			t.errorf(ref, field+".port", "%d is not a port: expected 1 to 65535", p.Port)
			continue
		}
		if taken[portKey{port, proto}] {
			t.errorf(ref, field+".port", "%d/%s is in the list already: remove one of the two", port, cmp.Or(p.Protocol, corev1.ProtocolTCP))
			continue
		}
		taken[portKey{port, proto}] = true
		sp := services.Port{Name: p.Name, Protocol: proto, Port: port}
		if hasNodePorts && p.NodePort != 0 {
			sp.NodePort = t.nodePort(p, proto, ref, field+".nodePort", claims)
		}
		list = append(list, sp)
	}
	return list
}

func (t *translator) nodePort(p corev1.ServicePort, proto packet.Proto, ref kube.Ref, field string, claims *serviceClaims) uint16 {
	port, ok := portOf(p.NodePort)
	if !ok {
		t.errorf(ref, field, "%d is not a port: expected one between 30000 and 32767", p.NodePort)
		return 0
	}
	key := portKey{port, proto}
	if owner, taken := claims.nodePorts[key]; taken {
		t.errorf(ref, field, "%d/%s belongs to %s already: choose another", port, cmp.Or(p.Protocol, corev1.ProtocolTCP), owner)
		return 0
	}
	claims.nodePorts[key] = ref
	claims.ownPorts = append(claims.ownPorts, key)
	return port
}

func protoOf(p corev1.Protocol) (packet.Proto, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return packet.TCP, true
	case corev1.ProtocolUDP:
		return packet.UDP, true
	case corev1.ProtocolSCTP:
		return packet.SCTP, true
	}
	return 0, false
}

func portOf(n int32) (uint16, bool) { return uint16(n), n > 0 && n <= 65535 }

func (t *translator) affinity(obj *corev1.Service, ref kube.Ref) time.Duration {
	c := obj.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	const day = 24 * 60 * 60
	seconds := *c.ClientIP.TimeoutSeconds
	if seconds <= 0 || seconds > day {
		t.errorf(ref, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is out of range: expected 1 to %d", seconds, day)
		return defaultAffinity
	}
	return time.Duration(seconds) * time.Second
}

// externalIPs are the addresses from outside of the cluster: what a load balancer assigned, and spec.externalIPs where they
// are honoured. An ingress
// with ipMode Proxy is not one of them: packets to it have to pass the load balancer (KEP-1860).
func (t *translator) externalIPs(obj *corev1.Service, ref kube.Ref) []netip.Addr {
	var list []netip.Addr
	add := func(text, field string) {
		if a, ok := t.serviceAddr(text, ref, field); ok && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	if obj.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for i, in := range obj.Status.LoadBalancer.Ingress {
			if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
				add(in.IP, index("status.loadBalancer.ingress", i)+".ip")
			}
		}
	}
	if len(obj.Spec.ExternalIPs) > 0 && !t.options.ExternalIPs {
		t.warnf(ref, "spec.externalIPs", "is not honoured, since whoever may write a Service could take over any address with it: "+
			"use a Service of type LoadBalancer, or start the agents with --external-ips")
		return list
	}
	for i, text := range obj.Spec.ExternalIPs {
		add(text, index("spec.externalIPs", i))
	}
	return list
}

// dnsAddrs are where pods ask for names: the addresses of the Service kube-system/kube-dns, else the usual ones. list is
// sorted by name.
func dnsAddrs(list []*services.Service, ranges []netip.Prefix) []netip.Addr {
	i, found := slices.BinarySearchFunc(list, objectName{"kube-system", "kube-dns"}, compareServiceName)
	if found && len(list[i].ClusterIPs) > 0 {
		return slices.Clone(list[i].ClusterIPs)
	}
	var addrs []netip.Addr
	for _, p := range ranges {
		a := p.Masked().Addr()
		for range dnsIndex {
			a = a.Next()
		}
		if p.Contains(a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// pods are those that have an address and have not ended.
func (t *translator) pods() []services.Pod {
	return t.memo.pods.of(t, t.objs.Pods, t.podList)
}

func (t *translator) podList() []services.Pod {
	var list []services.Pod
	for _, obj := range t.objs.Pods {
		if obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed {
			continue
		}
		p := services.Pod{Namespace: obj.Namespace, Name: obj.Name, ID: string(obj.UID)}
		for _, text := range kube.PodIPs(obj) {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				t.errorf(kube.RefOf(obj), "status.podIPs", "%q is not an address", text)
				continue
			}
			p.Addrs = append(p.Addrs, addr.Unmap())
		}
		if len(p.Addrs) > 0 {
			list = append(list, p)
		}
	}
	return list
}

// ServiceRanges gives the service ranges of a cluster: those of its ServiceCIDR objects, else the usual ones.
func ServiceRanges(objs kube.Objects) []netip.Prefix {
	return (&translator{objs: &objs}).serviceRanges()
}
