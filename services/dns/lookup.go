package dns

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// Lookup returns the addresses of a name in the zone, as the present Config has them: at most mostAddrs, IPv4 first. A
// name that lacks the end of the zone gets it, as the resolvers of pods do it: "web.shop" is
// web.shop.svc.cluster.local. Names outside of the zone have none.
func (s *Server) Lookup(name string) (addrs []netip.Addr) {
	v := s.view()
	if _, valid := dns.IsDomainName(name); v == nil || !valid {
		return nil
	}
	names := []string{dns.CanonicalName(name)}
	if !dns.IsSubDomain(s.zone, names[0]) {
		names = []string{names[0] + s.zone, names[0] + "svc." + s.zone}
	}
	for _, full := range names {
		for _, kind := range [...]uint16{dns.TypeA, dns.TypeAAAA} {
			addrs = append(addrs, s.addrsOf(v, full, kind)...)
		}
		if len(addrs) > 0 {
			break
		}
	}
	return slices.Clip(addrs[:min(len(addrs), mostAddrs)])
}

// mostAddrs is how many addresses of one name are returned: nobody tries more of them in turn.
const mostAddrs = 8

// addrsOf follows the CNAMEs of one name for as long as they stay in the zone.
func (s *Server) addrsOf(v *view, name string, kind uint16) (addrs []netip.Addr) {
	q := dns.Question{Name: name, Qtype: kind, Qclass: dns.ClassINET}
	for range maxChase {
		res := v.answer(q, dns.MaxMsgSize)
		for _, rr := range res.answer {
			switch rr := rr.(type) {
			case *dns.A:
				if a, ok := netip.AddrFromSlice(rr.A); ok {
					addrs = append(addrs, a.Unmap())
				}
			case *dns.AAAA:
				if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
					addrs = append(addrs, a)
				}
			}
		}
		if res.target == "" || !dns.IsSubDomain(s.zone, dns.CanonicalName(res.target)) {
			break
		}
		q.Name = res.target
	}
	return addrs
}
