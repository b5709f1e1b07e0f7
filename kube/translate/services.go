package translate

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
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

// serviceStage turns Services and their EndpointSlices into what there is to serve, and into names.
type serviceStage struct {
	site    site
	parsed  memo[*corev1.Service, *front]
	claims  groups[claim, *front]
	settled memo[*front, *front]
	slices  groups[objectName, *discoveryv1.EndpointSlice]
	joined  memo[*front, *services.Service]
	served  memo[list[*services.Service], []*services.Service]
	named   memo[*front, *dns.Service]
	names   memo[list[*dns.Service], []*dns.Service]
}

// serviceList is what all Services together come to.
type serviceList struct {
	list  []*services.Service
	names []*dns.Service
}

// site is what Services look different from: the node that serves them, and where it is.
type site struct {
	Options
	topologyZone string
}

// front is a Service without its endpoints.
type front struct {
	services.Service
	headless     bool
	externalName string // what the Service is another name of; it has nothing else then
	// namesOnly is set for a Service that another proxy serves, or nobody: DNS answers for it, no packet is
	// translated.
	namesOnly bool
	claims    []claimed
}

// claim is what one Service alone may have: a cluster address, or a port of all nodes.
type claim struct {
	addr  netip.Addr // invalid for a node port
	port  uint16
	proto packet.Proto
}

// claimed is a claim and the field that says so.
type claimed struct {
	claim
	field string
}

func (f *front) ref() kube.Ref {
	return kube.Ref{Kind: "Service", Namespace: f.Namespace, Name: f.Name}
}

func (f *front) name() objectName { return objectName{f.Namespace, f.Name} }

func compareFronts(a, b *front) int { return a.name().compare(b.name()) }

func (s *serviceStage) of(objs []*corev1.Service, list []*discoveryv1.EndpointSlice, at site, say *kube.Report) serviceList {
	if s.site != at {
		*s = serviceStage{site: at} // hints and the addresses from outside hang on it
	}
	parsed := s.parsed.each(objs, compareNames, nil, say, s.parse)
	settled := s.settled.each(parsed, compareFronts, s.contested(parsed), say, s.settle)
	moved, renamed := s.moved(settled, list)
	joined := s.joined.each(settled, compareFronts, moved, say, s.join)
	named := s.named.each(settled, compareFronts, renamed, say, s.name)
	return serviceList{
		list:  s.served.once(identity(joined), say, func(*kube.Report) []*services.Service { return without(joined, nil) }),
		names: s.names.once(identity(named), say, func(*kube.Report) []*dns.Service { return without(named, nil) }),
	}
}

// without gives the list itself when x is not in it.
func without[T comparable](list []T, x T) []T {
	if !slices.Contains(list, x) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(y T) bool { return y == x })
}

// contested gives the Services that have, or had, to do with others that want the same.
func (s *serviceStage) contested(parsed []*front) []*front {
	var out []*front
	for c, were := range s.claims.set(parsed, compareFronts, func(f *front, yield func(claim)) {
		for i := range f.claims {
			yield(f.claims[i].claim)
		}
	}) {
		if now := s.claims.of[c]; len(now) > 1 || len(were) > 1 {
			out = append(out, now...)
		}
	}
	slices.SortFunc(out, compareFronts)
	return slices.Compact(out)
}

// settle takes from a Service what others have: of those that claim the same, the least name gets it, so that all
// nodes agree.
func (s *serviceStage) settle(f *front, say *kube.Report) *front {
	kept := f
	for _, c := range f.claims {
		owner := s.claims.of[c.claim][0]
		if owner == f {
			continue
		}
		if kept == f {
			own := *f
			own.ClusterIPs, own.Ports = slices.Clone(f.ClusterIPs), slices.Clone(f.Ports)
			kept = &own
		}
		if c.addr.IsValid() {
			say.Errorf(f.ref(), c.field, "%s belongs to %s already: choose another address", c.addr, owner.ref())
			kept.ClusterIPs = slices.DeleteFunc(kept.ClusterIPs, func(a netip.Addr) bool { return a == c.addr })
			continue
		}
		say.Errorf(f.ref(), c.field, "%d/%s belongs to %s already: choose another", c.port, protoName(c.proto), owner.ref())
		for i := range kept.Ports {
			if p := &kept.Ports[i]; p.NodePort == c.port && p.Protocol == c.proto {
				p.NodePort = 0
			}
		}
	}
	return kept
}

// moved gives the Services whose EndpointSlices are others now, and those of them whose endpoints have, or had, names.
func (s *serviceStage) moved(settled []*front, list []*discoveryv1.EndpointSlice) (moved, renamed []*front) {
	for name, were := range s.slices.set(list, compareNames, func(es *discoveryv1.EndpointSlice, yield func(objectName)) {
		if name := es.Labels[discoveryv1.LabelServiceName]; name != "" {
			yield(objectName{es.Namespace, name})
		}
	}) {
		i, found := slices.BinarySearchFunc(settled, name, func(f *front, n objectName) int { return f.name().compare(n) })
		if !found {
			continue
		}
		moved = append(moved, settled[i])
		if settled[i].headless || slices.ContainsFunc(were, hasHostnames) || slices.ContainsFunc(s.slices.of[name], hasHostnames) {
			renamed = append(renamed, settled[i])
		}
	}
	slices.SortFunc(moved, compareFronts)
	slices.SortFunc(renamed, compareFronts)
	return moved, renamed
}

// join gives a Service its endpoints; nil for one that nobody could use, which is told where it was found, or that is
// a name alone.
func (s *serviceStage) join(f *front, say *kube.Report) *services.Service {
	if !f.usable() || f.externalName != "" {
		return nil
	}
	out := f.Service
	if f.namesOnly { // its endpoints may be referred to all the same
		out.ClusterIPs, out.ExternalIPs, out.HealthCheckNodePort = nil, nil, 0
		out.Ports = slices.Clone(out.Ports)
		for i := range out.Ports {
			out.Ports[i].NodePort = 0
		}
	}
	out.Endpoints = endpoints(s.slices.of[f.name()], s.site, say)
	return &out
}

// usable reports whether a Service leads anywhere. One that lost its addresses would pass for headless.
func (f *front) usable() bool { return f.externalName != "" || f.headless || len(f.ClusterIPs) > 0 }

// parse reads a Service by itself.
func (s *serviceStage) parse(obj *corev1.Service, say *kube.Report) *front {
	return parseService(obj, s.site.ExternalIPs, say)
}

func parseService(obj *corev1.Service, externalIPs bool, say *kube.Report) *front {
	ref := kube.RefOf(obj)
	f := &front{Service: services.Service{
		Namespace:       obj.Namespace,
		Name:            obj.Name,
		PublishNotReady: obj.Spec.PublishNotReadyAddresses,
	}, namesOnly: namesOnly(obj)}
	if obj.Spec.Type == corev1.ServiceTypeExternalName {
		f.externalName = obj.Spec.ExternalName
		if f.externalName == "" {
			say.Errorf(ref, "spec.externalName", "is missing: a Service of type ExternalName needs a DNS name")
		}
		return f
	}
	f.headless = obj.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(obj.Spec.ClusterIPs, corev1.ClusterIPNone)
	if !f.headless {
		f.parseClusterIPs(obj, say)
	}
	f.parsePorts(obj, say)
	if len(f.Ports) == 0 && len(obj.Spec.Ports) == 0 && !f.headless {
		say.Errorf(ref, "spec.ports", "is empty: add a port, or make the Service headless (clusterIP: None)")
	}
	if obj.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		f.Affinity = affinity(obj, say)
	}
	f.InternalLocal = obj.Spec.InternalTrafficPolicy != nil && *obj.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	f.ExternalLocal = obj.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	f.ExternalIPs = parseExternalIPs(obj, externalIPs, say)
	f.SourceRanges = sourceRanges(obj, say)
	if obj.Spec.Type == corev1.ServiceTypeLoadBalancer && f.ExternalLocal {
		f.HealthCheckNodePort, _ = portOf(obj.Spec.HealthCheckNodePort)
	}
	return f
}

func namesOnly(obj *corev1.Service) bool {
	_, other := obj.Labels[proxyNameLabel]
	_, headless := obj.Labels[headlessLabel]
	return other || headless
}

// sourceRanges are the clients that the load balancer's addresses are for; nil for all. When none of what is written
// can be read, nobody is let in.
func sourceRanges(obj *corev1.Service, say *kube.Report) []netip.Prefix {
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
			say.Errorf(kube.RefOf(obj), index(field, i), "%q is not a prefix: expected one like 192.0.2.0/24; until then these clients are kept out", text)
			continue
		}
		list = append(list, p.Masked())
	}
	return list
}

func (f *front) parseClusterIPs(obj *corev1.Service, say *kube.Report) {
	field, texts := "spec.clusterIPs", obj.Spec.ClusterIPs
	if len(texts) == 0 && obj.Spec.ClusterIP != "" {
		field, texts = "spec.clusterIP", []string{obj.Spec.ClusterIP}
	}
	if len(texts) == 0 {
		say.Errorf(f.ref(), "spec.clusterIP", "is missing and nobody here assigns one: write an address out of the service range, or None")
	}
	for i, text := range texts {
		if field != "spec.clusterIP" {
			field = index("spec.clusterIPs", i)
		}
		addr, ok := serviceAddr(text, f.ref(), field, say)
		if !ok {
			continue
		}
		if slices.Contains(f.ClusterIPs, addr) {
			say.Errorf(f.ref(), field, "%s is in the list already: remove one of the two", addr)
			continue
		}
		f.ClusterIPs = append(f.ClusterIPs, addr)
		f.claims = append(f.claims, claimed{claim{addr: addr}, field})
	}
}

// serviceAddr parses an address that clients may use for a Service.
func serviceAddr(text string, ref kube.Ref, field string, say *kube.Report) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addressing.Special(addr) != "" {
		say.Errorf(ref, field, "%q is no address a Service could have: expected one like 10.96.3.7", text)
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

func (f *front) parsePorts(obj *corev1.Service, say *kube.Report) {
	hasNodePorts := obj.Spec.Type == corev1.ServiceTypeNodePort || obj.Spec.Type == corev1.ServiceTypeLoadBalancer
	taken := map[portKey]bool{}
	for i, p := range obj.Spec.Ports {
		field := index("spec.ports", i)
		proto, ok := protoOf(p.Protocol)
		if !ok {
			say.Errorf(f.ref(), field+".protocol", "%q is not a protocol of Services: expected TCP, UDP or SCTP", p.Protocol)
			continue
		}
		port, ok := portOf(p.Port)
		if !ok {
			say.Errorf(f.ref(), field+".port", "%d is not a port: expected 1 to 65535", p.Port)
			continue
		}
		if taken[portKey{port, proto}] {
			say.Errorf(f.ref(), field+".port", "%d/%s is in the list already: remove one of the two", port, protoName(proto))
			continue
		}
		taken[portKey{port, proto}] = true
		sp := services.Port{Name: p.Name, Protocol: proto, Port: port}
		if hasNodePorts && p.NodePort != 0 {
			sp.NodePort = f.parseNodePort(p.NodePort, proto, field+".nodePort", say)
		}
		f.Ports = append(f.Ports, sp)
	}
}

// portKey is a port of one protocol.
type portKey struct {
	port  uint16
	proto packet.Proto
}

func (f *front) parseNodePort(number int32, proto packet.Proto, field string, say *kube.Report) uint16 {
	port, ok := portOf(number)
	if !ok {
		say.Errorf(f.ref(), field, "%d is not a port: expected one between 30000 and 32767", number)
		return 0
	}
	c := claim{port: port, proto: proto}
	if slices.ContainsFunc(f.claims, func(other claimed) bool { return other.claim == c }) {
		say.Errorf(f.ref(), field, "%d/%s is in the list already: choose another", port, protoName(proto))
		return 0
	}
	f.claims = append(f.claims, claimed{c, field})
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

func protoName(p packet.Proto) corev1.Protocol {
	switch p {
	case packet.UDP:
		return corev1.ProtocolUDP
	case packet.SCTP:
		return corev1.ProtocolSCTP
	}
	return corev1.ProtocolTCP
}

func portOf(n int32) (uint16, bool) { return uint16(n), n > 0 && n <= 65535 }

func affinity(obj *corev1.Service, say *kube.Report) time.Duration {
	c := obj.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	const day = 24 * 60 * 60
	seconds := *c.ClientIP.TimeoutSeconds
	if seconds <= 0 || seconds > day {
		say.Errorf(kube.RefOf(obj), "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is out of range: expected 1 to %d", seconds, day)
		return defaultAffinity
	}
	return time.Duration(seconds) * time.Second
}

// parseExternalIPs gives the addresses from outside of the cluster: what a load balancer assigned, and
// spec.externalIPs where they are honoured. An ingress with ipMode Proxy is not one of them: packets to it have to
// pass the load balancer (KEP-1860).
func parseExternalIPs(obj *corev1.Service, honoured bool, say *kube.Report) []netip.Addr {
	ref := kube.RefOf(obj)
	var list []netip.Addr
	add := func(text, field string) {
		if a, ok := serviceAddr(text, ref, field, say); ok && !slices.Contains(list, a) {
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
	if len(obj.Spec.ExternalIPs) > 0 && !honoured {
		say.Warnf(ref, "spec.externalIPs", "is not honoured, since whoever may write a Service could take over any address with it: "+
			"use a Service of type LoadBalancer, or start the agents with --external-ips")
		return list
	}
	for i, text := range obj.Spec.ExternalIPs {
		add(text, index("spec.externalIPs", i))
	}
	return list
}
