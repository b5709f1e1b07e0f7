package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/netstack/packet"
)

// ttl is the TTL of all records in the zone, in seconds. It is short, because clients do not see changes sooner.
// CoreDNS uses the same value.
const ttl = 5

// specVersion is the version of the Kubernetes DNS specification that the zone follows.
const specVersion = "1.1.0"

// view is a Config, indexed by name. It never changes.
type view struct {
	addrs      []netip.Addr // of the server itself
	zone       string       // canonical, with the final dot
	serves     func(namespace, name string, a netip.Addr) bool
	services   map[nsName]*Service
	namespaces map[string]bool
	pods       map[podKey]bool
	reverse    map[netip.Addr][]string // full names, sorted
}

type nsName struct{ ns, name string }

type podKey struct {
	ns   string
	addr netip.Addr
}

func newView(c *Config, zone string, serves func(string, string, netip.Addr) bool) *view {
	v := &view{
		addrs:      c.Addrs,
		zone:       zone,
		serves:     serves,
		services:   make(map[nsName]*Service, len(c.Services)),
		namespaces: map[string]bool{},
		pods:       make(map[podKey]bool, len(c.Pods)),
		reverse:    map[netip.Addr][]string{},
	}
	for _, s := range c.Services {
		v.services[nsName{s.Namespace, s.Name}] = s
		v.namespaces[s.Namespace] = true
		v.addReverse(s)
	}
	for i := range c.Pods {
		v.addPod(&c.Pods[i])
	}
	for addr, names := range v.reverse {
		slices.Sort(names)
		v.reverse[addr] = slices.Compact(names)
	}
	return v
}

func (v *view) addReverse(s *Service) {
	name := v.serviceName(s)
	for _, a := range s.ClusterIPs {
		a = a.Unmap()
		v.reverse[a] = append(v.reverse[a], name)
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		a := e.Addr.Unmap()
		v.reverse[a] = append(v.reverse[a], endpointLabel(e)+"."+name)
	}
}

// addPod must be called after all Services were added: a pod that has a name as an endpoint gets no reverse name as a
// pod.
func (v *view) addPod(p *Pod) {
	v.namespaces[p.Namespace] = true
	for _, a := range p.Addrs {
		a = a.Unmap()
		v.pods[podKey{p.Namespace, a}] = true
		if len(v.reverse[a]) == 0 && !p.HostNetwork {
			v.reverse[a] = []string{dashed(a) + "." + p.Namespace + ".pod." + v.zone}
		}
	}
}

// headless reports whether the name of s leads to its endpoints.
func headless(s *Service) bool { return len(s.ClusterIPs) == 0 && s.ExternalName == "" }

func (v *view) serviceName(s *Service) string {
	return s.Name + "." + s.Namespace + ".svc." + v.zone
}

// endpointLabel returns the endpoint's hostname, or its address with dashes if it has none.
func endpointLabel(e *Endpoint) string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	return dashed(e.Addr)
}

func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.Unmap().String())
}

// undashed parses the result of dashed.
func undashed(label string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return a, err == nil
}

// result is the answer to a question about the zone.
type result struct {
	rcode         int
	answer, extra []dns.RR
	// target is the target of a CNAME that still has to be looked up, or "".
	target string
}

var (
	noData   = result{}
	nxDomain = result{rcode: dns.RcodeNameError}
)

// answer answers a question for a name in the zone. The records are in the order of the Config.
func (v *view) answer(q dns.Question) result {
	labels := dns.SplitDomainName(strings.TrimSuffix(dns.CanonicalName(q.Name), v.zone))
	if len(labels) == 0 {
		return v.apex(q)
	}
	last := len(labels) - 1
	switch top, rest := labels[last], labels[:last]; top {
	case "svc":
		return v.svc(q, rest)
	case "pod":
		return v.pod(q, rest)
	case "dns-version":
		if len(rest) == 0 {
			return only(q, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{specVersion}})
		}
	case "dns":
		switch {
		case len(rest) == 0:
			return noData
		case len(rest) == 1 && rest[0] == "ns":
			return addresses(q, v.addrs)
		}
	}
	return nxDomain
}

func (v *view) apex(q dns.Question) result {
	switch q.Qtype {
	case dns.TypeSOA:
		return result{answer: []dns.RR{v.soa()}}
	case dns.TypeNS:
		ns := "ns.dns." + v.zone
		return result{
			answer: []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: ns}},
			extra:  records(ns, v.addrs),
		}
	}
	return noData
}

// svc answers for the labels before ".svc.<zone>".
func (v *view) svc(q dns.Question, labels []string) result {
	if len(labels) == 0 {
		return noData
	}
	n := len(labels) - 1
	if n == 0 {
		if v.namespaces[labels[0]] {
			return noData
		}
		return nxDomain
	}
	s := v.services[nsName{labels[n], labels[n-1]}]
	if s == nil {
		return nxDomain
	}
	switch rest := labels[:n-1]; {
	case len(rest) == 0:
		return v.service(q, s)
	case len(rest) <= 2 && strings.HasPrefix(rest[0], "_"):
		return v.ports(q, s, rest)
	case len(rest) == 1:
		return v.endpoint(q, s, rest[0])
	}
	return nxDomain
}

func (v *view) service(q dns.Question, s *Service) result {
	if s.ExternalName != "" {
		target := dns.Fqdn(s.ExternalName)
		if _, ok := dns.IsDomainName(target); !ok {
			return result{rcode: dns.RcodeServerFailure} // no message has room for it
		}
		r := result{answer: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}}
		if q.Qtype != dns.TypeCNAME && q.Qtype != dns.TypeANY {
			r.target = target
		}
		return r
	}
	if len(s.ClusterIPs) > 0 {
		return addresses(q, s.ClusterIPs)
	}
	return endpointAddresses(q, s, func(*Endpoint) bool { return true })
}

// endpoint answers for the name of one endpoint. An endpoint without a hostname, of a Service with ClusterIPs, has its
// address as its name, as in CoreDNS. Options.Serves says which addresses are such endpoints.
func (v *view) endpoint(q dns.Question, s *Service, label string) result {
	if a, ok := undashed(label); ok && dashed(a) == label && len(s.ClusterIPs) > 0 && v.serves(s.Namespace, s.Name, a) &&
		!slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Addr == a }) {
		return addresses(q, []netip.Addr{a})
	}
	return endpointAddresses(q, s, func(e *Endpoint) bool { return endpointLabel(e) == label })
}

// endpointAddresses answers with the matching endpoints of s. If none matches, the name does not exist.
func endpointAddresses(q dns.Question, s *Service, match func(*Endpoint) bool) result {
	var as []netip.Addr
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; match(e) && !slices.Contains(as, e.Addr) {
			as = append(as, e.Addr)
		}
	}
	if len(as) == 0 {
		return nxDomain
	}
	return addresses(q, as)
}

// ports answers for "_port._proto" or "_proto" of s.
func (v *view) ports(q dns.Question, s *Service, labels []string) result {
	proto, ok := map[string]packet.Proto{"_tcp": packet.TCP, "_udp": packet.UDP, "_sctp": packet.SCTP}[labels[len(labels)-1]]
	i := slices.IndexFunc(s.Ports, func(p Port) bool {
		return p.Name != "" && p.Protocol == proto && (len(labels) == 1 || "_"+p.Name == labels[0])
	})
	if !ok || i < 0 || s.ExternalName != "" {
		return nxDomain
	}
	var srv, extra []dns.RR
	if headless(s) {
		if srv, extra = v.headlessSRV(q.Name, s, &s.Ports[i]); len(srv) == 0 {
			return nxDomain
		}
	} else {
		name := v.serviceName(s)
		srv = []dns.RR{&dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 100, Port: s.Ports[i].Port, Target: name}}
		extra = records(name, s.ClusterIPs)
	}
	if q.Qtype != dns.TypeSRV || len(labels) == 1 {
		return noData
	}
	return result{answer: srv, extra: extra}
}

// headlessSRV returns one SRV record per endpoint name and port, and the addresses of those names.
func (v *view) headlessSRV(owner string, s *Service, p *Port) (srv, extra []dns.RR) {
	type target struct {
		name string
		port uint16
	}
	seen := map[target]bool{}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		name := endpointLabel(e) + "." + v.serviceName(s)
		for _, ep := range e.Ports {
			if ep.Name != p.Name || ep.Protocol != p.Protocol {
				continue
			}
			if !seen[target{name, ep.Port}] { // both addresses of a dual-stack pod have one name
				seen[target{name, ep.Port}] = true
				srv = append(srv, &dns.SRV{Hdr: header(owner, dns.TypeSRV), Port: ep.Port, Target: name})
			}
			extra = append(extra, records(name, []netip.Addr{e.Addr})...)
		}
	}
	for _, rr := range srv {
		rr.(*dns.SRV).Weight = uint16(max(1, 100/len(srv)))
	}
	return srv, dns.Dedup(extra, nil)
}

// pod answers for the labels before ".pod.<zone>". Only pods that exist have a name. If any address had one, a
// certificate for such a name would prove nothing.
func (v *view) pod(q dns.Question, labels []string) result {
	switch len(labels) {
	case 0:
		return noData
	case 1:
		if v.namespaces[labels[0]] {
			return noData
		}
	case 2:
		if a, ok := undashed(labels[0]); ok && v.pods[podKey{labels[1], a}] {
			return addresses(q, []netip.Addr{a})
		}
	}
	return nxDomain
}

// ptr answers for a reverse name. ok is false when the name is not that of a known address.
func (v *view) ptr(q dns.Question) (result, bool) {
	a, ok := reverseAddr(dns.CanonicalName(q.Name))
	if !ok || len(v.reverse[a]) == 0 {
		return result{}, false
	}
	var r result
	if q.Qtype == dns.TypePTR {
		for _, name := range v.reverse[a] {
			r.answer = append(r.answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
		}
	}
	return r, true
}

// reverseAddr parses a canonical name below in-addr.arpa (RFC 1035 3.5) or ip6.arpa (RFC 3596 2.5).
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 31; i >= 0; i-- {
		if i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		text.WriteByte(rest[2*i])
		if i%4 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil && a.Is6() && a.Zone() == ""
}

// soa returns the record in the authority section of every negative answer (RFC 2308).
func (v *view) soa() *dns.SOA {
	return &dns.SOA{
		Hdr: header(v.zone, dns.TypeSOA), Ns: "ns.dns." + v.zone, Mbox: "hostmaster." + v.zone,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

func header(name string, qtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: qtype, Class: dns.ClassINET, Ttl: ttl}
}

// only answers with rr if its type was asked for.
func only(q dns.Question, rr dns.RR) result {
	if q.Qtype != rr.Header().Rrtype {
		return noData
	}
	return result{answer: []dns.RR{rr}}
}

// addresses answers with the addresses of the family asked for.
func addresses(q dns.Question, as []netip.Addr) result {
	var r result
	for _, rr := range records(q.Name, as) {
		if rr.Header().Rrtype == q.Qtype {
			r.answer = append(r.answer, rr)
		}
	}
	return r
}

// records returns A and AAAA records for the addresses, IPv4 first.
func records(name string, as []netip.Addr) []dns.RR {
	var rrs []dns.RR
	for _, a := range as {
		switch a = a.Unmap(); {
		case a.Is4():
			rrs = append(rrs, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		case a.Is6():
			rrs = append(rrs, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	slices.SortStableFunc(rrs, func(a, b dns.RR) int { return cmp.Compare(a.Header().Rrtype, b.Header().Rrtype) })
	return rrs
}
