package controlplane

import (
	"cmp"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/translate"
)

// The node ports that may be assigned: the API server's default range.
const (
	firstNodePort = 30000
	lastNodePort  = 32767
)

// Allocate does for Services what an API server does: it assigns a cluster address or a node port to those that need
// one and have none. It returns a new, sorted snapshot with changed copies of these Services. The choice is a hash of
// the Service's name, so that it stays the same when other Services come and go, except in the rare case that two
// Services choose the same: then the lesser name gets it. A Service that asks for both families gets an address of
// each family that has a service range.
func Allocate(objs kube.Objects) (kube.Objects, []kube.Problem) {
	out := objs.Sorted(new(kube.Objects))
	a := allocator{ips: map[netip.Addr]bool{}, ports: map[nodePort]bool{}}
	a.ranges = translate.ServiceRanges(out)
	a.collect(out.Services)
	out.Services = slices.Clone(out.Services)
	for i, svc := range out.Services {
		out.Services[i] = a.service(svc)
	}
	return out, a.say.Sorted(out.Origin)
}

type allocator struct {
	ranges []netip.Prefix
	ips    map[netip.Addr]bool
	ports  map[nodePort]bool
	say    kube.Report
}

// nodePort is something that only one Service may have on the nodes.
type nodePort struct {
	port     int32
	protocol corev1.Protocol
}

// collect marks everything that is assigned already.
func (a *allocator) collect(services []*corev1.Service) {
	for _, addr := range translate.DefaultDNSAddrs(a.ranges) {
		a.ips[addr] = true
	}
	for _, svc := range services {
		for _, text := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
			if addr, err := netip.ParseAddr(text); err == nil {
				a.ips[addr] = true
			}
		}
		for _, p := range svc.Spec.Ports {
			if p.NodePort != 0 {
				a.ports[nodePort{p.NodePort, protocolOf(&p)}] = true
			}
		}
		if port := svc.Spec.HealthCheckNodePort; port != 0 {
			a.ports[nodePort{port, corev1.ProtocolTCP}] = true
		}
	}
}

func protocolOf(p *corev1.ServicePort) corev1.Protocol { return cmp.Or(p.Protocol, corev1.ProtocolTCP) }

func (a *allocator) service(svc *corev1.Service) *corev1.Service {
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(svc.Spec.ClusterIPs, corev1.ClusterIPNone)
	if svc.Spec.Type == corev1.ServiceTypeExternalName || headless {
		return svc
	}
	copied := svc.DeepCopy()
	changed := a.addresses(copied)
	if svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		changed = a.nodePorts(copied) || changed
	}
	changed = a.healthCheck(copied) || changed
	if !changed {
		return svc
	}
	return copied
}

func (a *allocator) addresses(svc *corev1.Service) (changed bool) {
	if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	for _, family := range a.missing(svc) {
		i := slices.IndexFunc(a.ranges, func(p netip.Prefix) bool { return familyOf(p.Addr()) == family })
		if i < 0 {
			a.say.Errorf(kube.RefOf(svc), "spec.ipFamilies", "there is no %s service range: add a ServiceCIDR, or remove the family", family)
			continue
		}
		addr, ok := a.address(a.ranges[i], svc.Namespace+"/"+svc.Name)
		if !ok {
			a.say.Errorf(kube.RefOf(svc), "spec.clusterIP", "the service range %s is full: add a larger ServiceCIDR", a.ranges[i])
			continue
		}
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, addr.String())
		svc.Spec.IPFamilies = familiesOfIPs(svc.Spec.ClusterIPs)
		changed = true
	}
	if changed {
		svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	}
	return changed
}

// missing returns the families that a Service asks for and has no address of.
func (a *allocator) missing(svc *corev1.Service) []corev1.IPFamily {
	want := slices.Clone(svc.Spec.IPFamilies)
	if len(want) == 0 {
		want = familiesOfIPs(svc.Spec.ClusterIPs)
	}
	several := svc.Spec.IPFamilyPolicy != nil && *svc.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack
	for _, p := range a.ranges {
		if f := familyOf(p.Addr()); !slices.Contains(want, f) && (len(want) == 0 || several) {
			want = append(want, f)
		}
	}
	have := familiesOfIPs(svc.Spec.ClusterIPs)
	return slices.DeleteFunc(want, func(f corev1.IPFamily) bool { return slices.Contains(have, f) })
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func familiesOfIPs(texts []string) []corev1.IPFamily {
	var list []corev1.IPFamily
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			list = append(list, familyOf(addr))
		}
	}
	return list
}

// address chooses a free address. It avoids the first sixteenth of the range, at most 256 addresses, where people
// choose addresses themselves (KEP-3070), and the last address, which in IPv4 is the broadcast address.
func (a *allocator) address(p netip.Prefix, name string) (netip.Addr, bool) {
	size := uint64(1) << min(p.Addr().BitLen()-p.Bits(), 32)
	low := max(min(size/16, 256), 1)
	if size < low+2 {
		return netip.Addr{}, false
	}
	n := size - low - 1
	start := hash(name) % n
	for i := range min(n, 1<<17) {
		addr := nth(p, low+(start+i)%n)
		if !a.ips[addr] {
			a.ips[addr] = true
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// nth returns address number n of a prefix.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().As16()
	carry := uint64(0)
	for i := len(b) - 1; i >= 0; i-- {
		sum, _ := bits.Add64(uint64(b[i]), n&0xff, carry)
		b[i], carry, n = byte(sum), sum>>8, n>>8
	}
	if p.Addr().Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}

func (a *allocator) nodePorts(svc *corev1.Service) (changed bool) {
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.AllocateLoadBalancerNodePorts != nil && !*svc.Spec.AllocateLoadBalancerNodePorts {
		return false
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		protocol := protocolOf(p)
		known := protocol == corev1.ProtocolTCP || protocol == corev1.ProtocolUDP || protocol == corev1.ProtocolSCTP
		if !known || p.NodePort != 0 {
			continue
		}
		port, ok := a.nodePort(protocol, svc.Namespace+"/"+svc.Name+":"+cmp.Or(p.Name, "-"))
		if !ok {
			a.say.Errorf(kube.RefOf(svc), "spec.ports["+strconv.Itoa(i)+"].nodePort",
				"all node ports from %d to %d are taken: remove one", firstNodePort, lastNodePort)
			continue
		}
		p.NodePort, changed = port, true
	}
	return changed
}

// healthCheck assigns the port at which load balancers ask about a Service that is local to nodes.
func (a *allocator) healthCheck(svc *corev1.Service) (changed bool) {
	spec := &svc.Spec
	if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || spec.HealthCheckNodePort != 0 {
		return false
	}
	port, ok := a.nodePort(corev1.ProtocolTCP, svc.Namespace+"/"+svc.Name+" health")
	if !ok {
		a.say.Errorf(kube.RefOf(svc), "spec.healthCheckNodePort", "all node ports from %d to %d are taken: remove one", firstNodePort, lastNodePort)
	}
	spec.HealthCheckNodePort = port
	return ok
}

func (a *allocator) nodePort(protocol corev1.Protocol, name string) (int32, bool) {
	const n = lastNodePort - firstNodePort + 1
	for i := range uint64(n) {
		key := nodePort{int32(firstNodePort + (hash(name)+i)%n), protocol}
		if !a.ports[key] {
			a.ports[key] = true
			return key.port, true
		}
	}
	return 0, false
}

// hash returns the FNV-1a hash of s.
func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
