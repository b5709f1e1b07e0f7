package translate

import (
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// name returns what the name of a Service leads to, or nil when the Service leads nowhere.
func (s *serviceStage) name(f *front, say *kube.Report) *dns.Service {
	return s.dns.kept(f, compareFronts, s.leadsTo(f, say))
}

func (s *serviceStage) leadsTo(f *front, say *kube.Report) *dns.Service {
	if !f.usable() {
		return nil
	}
	out := &dns.Service{Namespace: f.Namespace, Name: f.Name, ExternalName: f.externalName, ClusterIPs: f.ClusterIPs}
	for _, p := range f.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
	}
	list := s.slices.of[f.name()]
	if f.externalName != "" || !f.headless && s.named[f.name()] == 0 {
		return out
	}
	hostnames := hostnamesOf(list)
	for _, e := range endpoints(list, s.site, say) {
		hostname := hostnames[spot{e.Addr, e.ID}]
		if !e.Ready && !f.PublishNotReady || !f.headless && hostname == "" {
			continue
		}
		out.Endpoints = append(out.Endpoints, dns.Endpoint{Addr: e.Addr, Hostname: hostname, Ports: dnsPorts(e.Ports)})
	}
	return out
}

func dnsPorts(list []services.EndpointPort) []dns.Port {
	var out []dns.Port
	for _, p := range list {
		out = append(out, dns.Port(p))
	}
	return out
}

// hasHostnames reports whether an endpoint of a slice has a hostname.
func hasHostnames(s *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return deref(e.Hostname, "") != "" })
}

// hostnamesOf returns the hostnames of endpoints. When a spot has several, the first counts.
func hostnamesOf(list []*discoveryv1.EndpointSlice) map[spot]string {
	names := map[spot]string{}
	for _, s := range list {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			hostname := deref(e.Hostname, "")
			if hostname == "" || len(e.Addresses) == 0 {
				continue
			}
			if a, err := netip.ParseAddr(e.Addresses[0]); err == nil {
				if where := (spot{a, idOf(e, a)}); names[where] == "" {
					names[where] = hostname
				}
			}
		}
	}
	return names
}

// dnsAddrs returns the addresses where pods ask for names: those of the Service kube-system/kube-dns, or else the
// default ones.
func dnsAddrs(names []*dns.Service, ranges []netip.Prefix) []netip.Addr {
	i, found := slices.BinarySearchFunc(names, kubeDNS, func(s *dns.Service, n objectName) int {
		return objectName{s.Namespace, s.Name}.compare(n)
	})
	if found && len(names[i].ClusterIPs) > 0 {
		return slices.Clone(names[i].ClusterIPs)
	}
	return DefaultDNSAddrs(ranges)
}
