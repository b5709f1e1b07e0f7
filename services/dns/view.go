package dns

import (
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

// The reverse zones (RFC 1035 3.5, RFC 3596 2.5).
const (
	zone4 = "in-addr.arpa."
	zone6 = "ip6.arpa."
)

// The least lengths of records in bytes: a pointer to the name, the header (RFC 1035 3.2.1), and the data.
const (
	recordLen = 2 + 10
	aLen      = recordLen + 4
	aaaaLen   = recordLen + 16
	srvLen    = recordLen + 6 + 1 // without the Service's name, since targets are not compressed (RFC 2782)
	ptrLen    = recordLen + 2
)

// view is a Config, indexed by name. It never changes.
type view struct {
	addrs      addrs  // of the server itself
	zone       string // canonical, with the final dot
	serves     func(namespace, name string, a netip.Addr) bool
	podsByForm bool
	services   map[nsName]*known
	namespaces map[string]bool
	pods       map[podKey]bool
	reverse    map[netip.Addr][]named
}

// named is the owner of an address: an endpoint of a Service, or the Service itself when endpoint is nil. When service
// is nil too, the owner is a pod of that namespace.
type named struct {
	service   *Service
	endpoint  *Endpoint
	namespace string
}

type nsName struct{ ns, name string }

type podKey struct {
	ns   string
	addr netip.Addr
}

// newView returns the view of c. It takes over from last, which may be nil, the Services that have not changed.
func newView(c *Config, zone string, opts *Options, last *view) *view {
	v := &view{
		addrs:      newAddrs(slices.Clone(c.Addrs)),
		zone:       zone,
		serves:     opts.Serves,
		podsByForm: opts.PodsByForm,
		services:   make(map[nsName]*known, len(c.Services)),
		namespaces: map[string]bool{},
		pods:       make(map[podKey]bool, len(c.Pods)),
		reverse:    map[netip.Addr][]named{},
	}
	for _, s := range c.Services {
		key := nsName{s.Namespace, s.Name}
		if last != nil && last.services[key] != nil && last.services[key].Service == s {
			v.services[key] = last.services[key]
		} else {
			v.services[key] = newKnown(s)
		}
		v.namespaces[s.Namespace] = true
		v.addReverse(s)
	}
	for i := range c.Pods {
		v.addPod(&c.Pods[i])
	}
	return v
}

func (v *view) addReverse(s *Service) {
	for _, a := range s.ClusterIPs {
		a = a.Unmap()
		v.reverse[a] = append(v.reverse[a], named{service: s})
	}
	for i := range s.Endpoints {
		a := s.Endpoints[i].Addr.Unmap()
		v.reverse[a] = append(v.reverse[a], named{service: s, endpoint: &s.Endpoints[i]})
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
			v.reverse[a] = []named{{namespace: p.Namespace}}
		}
	}
}

// nameOf returns the full name of n, whose address is a.
func (v *view) nameOf(n named, a netip.Addr) string {
	switch {
	case n.endpoint != nil:
		return endpointLabel(n.endpoint) + "." + v.serviceName(n.service)
	case n.service != nil:
		return v.serviceName(n.service)
	}
	return dashed(a) + "." + n.namespace + ".pod." + v.zone
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

var dashes = strings.NewReplacer(".", "-", ":", "-")

// dashed returns the address as a label. A label neither begins nor ends with a dash (RFC 952, RFC 1123 2.1), as the
// shortest form of some IPv6 addresses would; the zero that is left out there is written (coredns/coredns#7430).
func dashed(a netip.Addr) string {
	s := dashes.Replace(a.Unmap().String())
	if s[0] == '-' {
		s = "0" + s
	}
	if s[len(s)-1] == '-' {
		s += "0"
	}
	return s
}

// undashed parses the result of dashed.
func undashed(label string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return a, err == nil && a.Zone() == ""
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

// answer answers a question for a name in the zone. The records are in random order. If a message of size bytes cannot
// hold them all, the result has a random choice of them, which is at least one record too many.
func (v *view) answer(q dns.Question, size int) result {
	labels := dns.SplitDomainName(strings.TrimSuffix(dns.CanonicalName(q.Name), v.zone))
	if len(labels) == 0 {
		return v.apex(q)
	}
	last := len(labels) - 1
	switch top, rest := labels[last], labels[:last]; top {
	case "svc":
		return v.svc(q, rest, size)
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
			return addresses(q, v.addrs, size)
		}
	}
	return nxDomain
}

func (v *view) apex(q dns.Question) result {
	switch q.Qtype {
	case dns.TypeSOA:
		return result{answer: []dns.RR{v.soa(v.zone)}}
	case dns.TypeNS:
		ns := "ns.dns." + v.zone
		return result{
			answer: []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: ns}},
			extra:  records(ns, v.addrs.list),
		}
	}
	return noData
}

// svc answers for the labels before ".svc.<zone>".
func (v *view) svc(q dns.Question, labels []string, size int) result {
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
		return v.service(q, s, size)
	case len(rest) <= 2 && strings.HasPrefix(rest[0], "_"):
		return v.ports(q, s, rest, size)
	case len(rest) == 1:
		return v.endpoint(q, s, rest[0], size)
	}
	return nxDomain
}

func (v *view) service(q dns.Question, s *known, size int) result {
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
		return addresses(q, newAddrs(slices.Clone(s.ClusterIPs)), size)
	}
	return existing(q, s.byName().all, size)
}

// endpoint answers for the name of one endpoint. An endpoint without a hostname, of a Service with ClusterIPs, has its
// address as its name, as in CoreDNS. Options.Serves says which addresses are such endpoints.
func (v *view) endpoint(q dns.Question, s *known, label string, size int) result {
	if a, ok := undashed(label); ok && dashed(a) == label && len(s.ClusterIPs) > 0 && v.serves(s.Namespace, s.Name, a) &&
		!slices.ContainsFunc(v.reverse[a], func(n named) bool { return n.service == s.Service && n.endpoint != nil }) {
		return addresses(q, newAddrs([]netip.Addr{a}), size)
	}
	return existing(q, s.byName().labels[label], size)
}

// existing answers with the addresses of endpoints. If there are none, the name does not exist.
func existing(q dns.Question, as addrs, size int) result {
	if len(as.list) == 0 {
		return nxDomain
	}
	return addresses(q, as, size)
}

// ports answers for "_port._proto" or "_proto" of s.
func (v *view) ports(q dns.Question, s *known, labels []string, size int) result {
	proto, ok := map[string]packet.Proto{"_tcp": packet.TCP, "_udp": packet.UDP, "_sctp": packet.SCTP}[labels[len(labels)-1]]
	i := slices.IndexFunc(s.Ports, func(p Port) bool {
		return p.Name != "" && p.Protocol == proto && (len(labels) == 1 || "_"+p.Name == labels[0])
	})
	if !ok || i < 0 || s.ExternalName != "" {
		return nxDomain
	}
	port := &s.Ports[i]
	if headless(s.Service) && len(s.byName().ports[portName{port.Name, proto}]) == 0 {
		return nxDomain
	}
	if q.Qtype != dns.TypeSRV || len(labels) == 1 {
		return noData
	}
	if headless(s.Service) {
		return v.headlessSRV(q.Name, s, port, size)
	}
	name := v.serviceName(s.Service)
	return result{
		answer: []dns.RR{&dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 100, Port: port.Port, Target: name}},
		extra:  records(name, s.ClusterIPs),
	}
}

// headlessSRV returns one SRV record per endpoint name and port, and the addresses of those names, as answer does.
func (v *view) headlessSRV(owner string, s *known, p *Port, size int) (r result) {
	x, suffix := s.byName(), "."+v.serviceName(s.Service)
	targets := x.ports[portName{p.Name, p.Protocol}]
	weight := uint16(max(1, 100/len(targets)))
	told := map[string]bool{}
	for _, t := range pick(targets, fits(size, srvLen+len(suffix))) {
		name := t.label + suffix
		r.answer = append(r.answer, &dns.SRV{Hdr: header(owner, dns.TypeSRV), Weight: weight, Port: t.port, Target: name})
		// One label may be that of many endpoints.
		as, left := x.labels[t.label].list, fits(size, aLen)-len(r.extra)
		if told[t.label] || left <= 0 {
			continue
		}
		told[t.label] = true
		if len(as) > left {
			as = as[:left]
		}
		r.extra = append(r.extra, records(name, as)...)
	}
	return r
}

// fits returns more than the number of records that a message of size bytes holds. Each record has length bytes or
// more.
func fits(size, length int) int { return size/length + 1 }

// pod answers for the labels before ".pod.<zone>". Without podsByForm only pods that exist have a name. If any address
// has one, a certificate for such a name proves nothing.
func (v *view) pod(q dns.Question, labels []string) result {
	switch len(labels) {
	case 0:
		return noData
	case 1:
		if v.namespaces[labels[0]] || v.podsByForm {
			return noData
		}
	case 2:
		if a, ok := undashed(labels[0]); ok && (v.podsByForm || v.pods[podKey{labels[1], a}]) {
			return addresses(q, newAddrs([]netip.Addr{a}), dns.MinMsgSize)
		}
	}
	return nxDomain
}

// ptr answers for a reverse name, as answer does for the zone. ok is false when the name is not that of a known
// address.
func (v *view) ptr(q dns.Question, size int) (result, bool) {
	a, ok := reverseAddr(dns.CanonicalName(q.Name))
	if !ok || len(v.reverse[a]) == 0 {
		return result{}, false
	}
	var r result
	if q.Qtype == dns.TypePTR {
		told := map[string]bool{}
		for _, n := range pick(v.reverse[a], fits(size, ptrLen)) {
			if name := v.nameOf(n, a); !told[name] {
				told[name] = true
				r.answer = append(r.answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
			}
		}
	}
	return r, true
}

// reverseZone returns the zone of a reverse name.
func reverseZone(name string) string {
	if dns.IsSubDomain(zone4, dns.CanonicalName(name)) {
		return zone4
	}
	return zone6
}

// reverseAddr parses a canonical name below in-addr.arpa (RFC 1035 3.5) or ip6.arpa (RFC 3596 2.5).
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, "."+zone4); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, "."+zone6)
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

// soa returns the SOA record of a zone of this server. It is in the authority section of every negative answer (RFC
// 2308).
func (v *view) soa(zone string) *dns.SOA {
	return &dns.SOA{
		Hdr: header(zone, dns.TypeSOA), Ns: "ns.dns." + v.zone, Mbox: "hostmaster." + v.zone,
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

// addresses answers with the addresses of the family asked for, as answer does.
func addresses(q dns.Question, as addrs, size int) result {
	length := aLen
	if q.Qtype == dns.TypeAAAA {
		length = aaaaLen
	}
	return result{answer: records(q.Name, pick(as.of(q.Qtype), fits(size, length)))}
}

// records returns A and AAAA records for the addresses.
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
	return rrs
}
