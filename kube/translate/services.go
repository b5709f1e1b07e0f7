package translate

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// These labels of Services forbid to proxy them; DNS answers for them all the same.
const (
	// proxyNameLabel says that another proxy serves the Service (KEP-2447).
	proxyNameLabel = "service.kubernetes.io/service-proxy-name"
	// headlessLabel says that the ClusterIP is to lead nowhere. kube-proxy understands it in the same way.
	headlessLabel = corev1.IsHeadlessService
)

// balancingKey is the annotation of Services by which they say how backends are chosen.
const balancingKey = "tapestry.dev/load-balancing"

// defaultAffinity is the duration of ClientIP affinity unless the Service says otherwise (v1 ClientIPConfig).
const defaultAffinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second

// serviceStage turns Services and their EndpointSlices into the Services to serve, and into DNS names.
type serviceStage struct {
	site    site
	parsed  memo[*corev1.Service, *front]
	list    roll.List[*discoveryv1.EndpointSlice] // the members of slices
	slices  groups[objectName, *discoveryv1.EndpointSlice]
	named   tally // how many slices of each Service have hostnames
	free    freeStage
	claims  claims
	settled memo[*front, *front]
	fronts  rollOf[*front] // what is settled
	joined  rolled[*front, *services.Service]
	parts   partStage
	leaving leavingPods
	leading leadStage
	served  somewhere[*services.Service]
	dns     memo[*front, *dns.Service]
	names   memo[list[*dns.Service], []*dns.Service]
}

// serviceList is the result of all Services together.
type serviceList struct {
	list  roll.List[*services.Service]
	names []*dns.Service
}

// site is the place from which Services are seen: the serving node and its topology zone.
type site struct {
	Options
	topologyZone string
}

// around has the owners of addresses other than Services.
type around struct {
	site      site
	announced []netip.Prefix // the service ranges that objects announce, in which cluster DNS has its addresses
	ranges    []netip.Prefix // all service ranges
	nodes     *nodes
	egress    []netip.Addr // from which pods leave
}

// front is a Service without its endpoints.
type front struct {
	services.Service
	made         time.Time
	headless     bool
	externalName string // the DNS name for which this Service is an alias; such a Service has nothing else
	// namesOnly is set for a Service that another proxy serves, or nobody: DNS answers for it, but no packet is
	// translated.
	namesOnly bool
	claims    []claimed
}

func (f *front) ref() kube.Ref {
	return kube.Ref{Kind: "Service", Namespace: f.Namespace, Name: f.Name}
}

func (f *front) name() objectName { return objectName{f.Namespace, f.Name} }

func compareFronts(a, b *front) int { return a.name().compare(b.name()) }

func (s *serviceStage) of(objs *kube.Objects, a around, say *kube.Report) serviceList {
	if s.site != a.site {
		*s = serviceStage{site: a.site, leaving: s.leaving} // topology hints and external addresses depend on it
	}
	parsed := s.parsed.each(objs.Services, compareNames, nil, say, s.parse)
	gone, come := roll.Difference(s.list, objs.EndpointSlices, compareNames)
	s.list = objs.EndpointSlices
	were := s.slices.change(gone, come, compareNames, serviceOf)
	named := s.named.change(gone, come, hasHostnames)
	free := s.free.of(parsed, taken{a, s.slices.of[apiServer]}, say)
	settled := s.settled.each(free, compareFronts, s.claims.set(free), say, s.claims.settle)
	moved, renamed := s.moved(settled, were, named)
	for _, name := range s.servedBy(s.leaving.set(objs.Pods, a.site.Node)) {
		if i, found := indexOf(settled, name); found {
			moved = append(moved, i)
		}
	}
	served := s.served.of(s.joined.each(s.fronts.of(settled), compareFronts, moved, say, s.join))
	s.parts.only(served)
	names := s.dns.each(settled, compareFronts, renamed, say, s.name)
	return serviceList{
		list:  s.leading.of(served, leads{around: a, claims: &s.claims}, say),
		names: s.names.once(identity(names), say, func(*kube.Report) []*dns.Service { return without(names, nil) }),
	}
}

// serviceOf yields the name of the Service to which a slice belongs.
func serviceOf(es *discoveryv1.EndpointSlice, yield func(objectName)) {
	if name := es.Labels[discoveryv1.LabelServiceName]; name != "" {
		yield(objectName{es.Namespace, name})
	}
}

// without returns list without x. It returns the list itself when x is not in it.
func without[T comparable](list []T, x T) []T {
	if !slices.Contains(list, x) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(y T) bool { return y == x })
}

// moved returns the indexes of the Services whose EndpointSlices have changed, and those of them whose endpoints have,
// or had, names. were has the Services whose slices have changed, and named those of them that had slices with
// hostnames.
func (s *serviceStage) moved(fronts []*front, were map[objectName][]*discoveryv1.EndpointSlice, named map[objectName]bool) (moved []int, renamed []*front) {
	for name := range were {
		i, found := indexOf(fronts, name)
		if !found {
			continue
		}
		moved = append(moved, i)
		if f := fronts[i]; f.headless || named[name] || s.named[name] > 0 {
			renamed = append(renamed, f)
		}
	}
	return moved, renamed
}

// indexOf returns the index of the Service with that name, or false. fronts are sorted by name.
func indexOf(fronts []*front, name objectName) (int, bool) {
	return slices.BinarySearchFunc(fronts, name, func(f *front, n objectName) int { return f.name().compare(n) })
}

// join returns a Service with its endpoints. It returns nil for a Service that is only another name, or that nobody
// could use; the latter has been reported already.
func (s *serviceStage) join(f *front, say *kube.Report) *services.Service {
	if !f.usable() || f.externalName != "" {
		return nil
	}
	out := f.Service
	if f.namesOnly { // an Ingress may refer to its endpoints all the same
		out.ClusterIPs, out.ExternalIPs, out.SocketIPs, out.HealthCheckNodePort = nil, nil, nil, 0
		out.Ports = slices.Clone(out.Ports)
		for i := range out.Ports {
			out.Ports[i].NodePort = 0
		}
	}
	if list := s.slices.of[f.name()]; many(list, len(f.Ports)) {
		out.Parts = s.partsOf(f.name(), list, say)
	} else {
		out.Endpoints = endpoints(list, s.site, say)
		s.leaving.mark(out.Endpoints)
	}
	return &out
}

// usable reports whether a Service leads anywhere. A Service that lost its addresses does not: it would look like a
// headless one.
func (f *front) usable() bool { return f.externalName != "" || f.headless || len(f.ClusterIPs) > 0 }

// parse reads a Service by itself.
func (s *serviceStage) parse(obj *corev1.Service, say *kube.Report) *front {
	return s.parsed.kept(obj, compareNames, parseService(obj, s.site.ExternalIPs, say))
}

func parseService(obj *corev1.Service, externalIPs bool, say *kube.Report) *front {
	ref := kube.RefOf(obj)
	f := &front{Service: services.Service{
		Namespace:       obj.Namespace,
		Name:            obj.Name,
		PublishNotReady: obj.Spec.PublishNotReadyAddresses,
	}, made: obj.CreationTimestamp.Time, namesOnly: namesOnly(obj)}
	if obj.Spec.Type == corev1.ServiceTypeExternalName {
		f.externalName = externalName(obj, say)
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
	f.Balance = loadBalancing(obj, f.Affinity, say)
	f.InternalLocal = obj.Spec.InternalTrafficPolicy != nil && *obj.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	f.ExternalLocal = obj.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	f.Proxy = proxyProtocol(obj, say)
	f.parseExternalIPs(obj, externalIPs, say)
	f.SourceRanges = sourceRanges(obj, say)
	if obj.Spec.Type == corev1.ServiceTypeLoadBalancer && f.ExternalLocal && obj.Spec.HealthCheckNodePort != 0 {
		nodePorts := map[portKey]bool{}
		for _, p := range f.Ports {
			nodePorts[portKey{p.NodePort, p.Protocol}] = true
		}
		f.HealthCheckNodePort = f.parseNodePort(obj.Spec.HealthCheckNodePort, packet.TCP, healthPortField, nodePorts, say)
	}
	return f
}

// externalName returns the name for which a Service is an alias, or "" when DNS could not answer with the name. An API
// server checks neither the length of the labels nor whether the text is a name at all.
func externalName(obj *corev1.Service, say *kube.Report) string {
	const field = "spec.externalName"
	text := obj.Spec.ExternalName
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	long := func(label string) bool { return len(label) > validation.DNS1123LabelMaxLength }
	switch _, err := netip.ParseAddr(text); {
	case text == "":
		say.Errorf(kube.RefOf(obj), field, "is missing: a Service of type ExternalName needs a DNS name")
		return ""
	case err == nil:
		say.Errorf(kube.RefOf(obj), field, "%s is an address, and DNS would take it for a name: make the Service headless, with an EndpointSlice that has the address", text)
		return ""
	case len(validation.IsDNS1123Subdomain(name)) > 0 || slices.ContainsFunc(strings.Split(name, "."), long):
		say.Errorf(kube.RefOf(obj), field, "%.300q is no DNS name: expected labels of at most %d letters, digits and dashes, like db.example.com", text, validation.DNS1123LabelMaxLength)
		return ""
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		say.Warnf(kube.RefOf(obj), field, "%s means each client's own host (RFC 6761): check that this is intended", text)
	}
	return text
}

func namesOnly(obj *corev1.Service) bool {
	_, other := obj.Labels[proxyNameLabel]
	_, headless := obj.Labels[headlessLabel]
	return other || headless
}

// sourceRanges returns the clients that may use the load balancer's addresses, or nil for all. When none of the
// ranges can be parsed, nobody is let in.
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

// proxyProtocol returns the version of the PROXY protocol that a load balancer asks for, 0 for none.
func proxyProtocol(obj *corev1.Service, say *kube.Report) uint8 {
	version, ok := kube.ProxyProtocol(obj)
	if !ok {
		say.Errorf(kube.RefOf(obj), annotation(kube.ProxyProtocolAnnotation), "%q is no version of the PROXY protocol: expected v1 or v2; until then connections have no header",
			obj.Annotations[kube.ProxyProtocolAnnotation])
	}
	return version
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
		f.claims = append(f.claims, claimed{claim: claim{addr: addr}, field: field})
	}
}

// serviceAddr parses an address by which clients use a Service.
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
	taken, nodePorts := map[portKey]bool{}, map[portKey]bool{}
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
			sp.NodePort = f.parseNodePort(p.NodePort, proto, field+".nodePort", nodePorts, say)
		}
		f.Ports = append(f.Ports, sp)
	}
}

// portKey is a port of one protocol.
type portKey struct {
	port  uint16
	proto packet.Proto
}

// parseNodePort returns a port on all nodes, or 0 when the Service cannot have it. taken are those that it has already.
func (f *front) parseNodePort(number int32, proto packet.Proto, field string, taken map[portKey]bool, say *kube.Report) uint16 {
	port, ok := portOf(number)
	if !ok {
		say.Errorf(f.ref(), field, "%d is not a port: expected one between 30000 and 32767", number)
		return 0
	}
	if taken[portKey{port, proto}] {
		say.Errorf(f.ref(), field, "%d/%s is in the list already: choose another", port, protoName(proto))
		return 0
	}
	taken[portKey{port, proto}] = true
	f.claims = append(f.claims, claimed{claim: claim{port: port, proto: proto}, field: field})
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

// loadBalancing returns how the backends of a Service are chosen.
func loadBalancing(obj *corev1.Service, affinity time.Duration, say *kube.Report) balance.Method {
	text, there := obj.Annotations[balancingKey]
	if !there {
		return balance.Hash
	}
	m, ok := balance.Parse(text)
	switch {
	case !ok:
		say.Errorf(kube.RefOf(obj), annotation(balancingKey), "%.300q is no way to choose backends: expected one of %s; until then it is %s", text, balance.Names(), balance.Hash)
	case affinity > 0 && m != balance.Hash:
		say.Warnf(kube.RefOf(obj), annotation(balancingKey), "%s has no effect on connections, whose clients keep their backend by sessionAffinity ClientIP: remove one of the two", m)
	}
	return m
}

// mostExternal is how many external addresses times ports a Service may have. Each pair is a frontend on every node,
// and who may write services/status, or a Service, decides how many there are.
const mostExternal = 10_000

// parseExternalIPs reads the external addresses: those that a load balancer assigned, and spec.externalIPs where they
// are honoured. Packets to ingress points with ipMode Proxy have to pass the load balancer (KEP-1860), so those are
// left out, unless we are the load balancer: then they are SocketIPs. An address of a family that the Service has not
// is left to whoever assigned it: a load balancer that translates between families (NAT64) serves it. Nobody serves one
// of spec.externalIPs.
func (f *front) parseExternalIPs(obj *corev1.Service, honoured bool, say *kube.Report) {
	known, left := map[netip.Addr]bool{}, 0
	// add reports whether an address is of a family that the Service has not.
	add := func(list *[]netip.Addr, text, field string) (foreign bool) {
		a, ok := serviceAddr(text, f.ref(), field, say)
		switch {
		case !ok || known[a]:
			return false
		case len(f.ClusterIPs) > 0 && !slices.ContainsFunc(f.ClusterIPs, func(b netip.Addr) bool { return a.Is4() == b.Is4() }):
			return true
		}
		known[a] = true
		if len(known)*max(1, len(f.Ports)) > mostExternal {
			left++
			return false
		}
		*list = append(*list, a)
		f.claims = append(f.claims, claimed{claim{addr: a}, field, true})
		for _, p := range f.Ports {
			f.claims = append(f.claims, claimed{claim{a, p.Port, p.Protocol}, field, true})
		}
		return false
	}
	defer func() {
		if left > 0 {
			say.Errorf(f.ref(), "status.loadBalancer.ingress, spec.externalIPs",
				"they have %d addresses for %d ports, and the product may be %d: the last %d addresses are left out; divide the Service into several",
				len(known), len(f.Ports), mostExternal, left)
		}
	}()
	if obj.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for i, in := range obj.Status.LoadBalancer.Ingress {
			if in.IP == "" {
				continue
			}
			if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
				add(&f.ExternalIPs, in.IP, index("status.loadBalancer.ingress", i)+".ip")
			} else if f.Proxy != 0 {
				add(&f.SocketIPs, in.IP, index("status.loadBalancer.ingress", i)+".ip")
			}
		}
	}
	if len(obj.Spec.ExternalIPs) > 0 && !honoured {
		say.Warnf(f.ref(), "spec.externalIPs", "is not honoured, since whoever may write a Service could take over any address with it: "+
			"use a Service of type LoadBalancer, or start the agents with --external-ips")
		return
	}
	for i, text := range obj.Spec.ExternalIPs {
		if field := index("spec.externalIPs", i); add(&f.ExternalIPs, text, field) {
			say.Warnf(f.ref(), field, "%q is of a family that the Service has not, so nobody answers there: give the Service both families (spec.ipFamilyPolicy), or remove the address", text)
		}
	}
}
