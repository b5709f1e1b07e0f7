package dns

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/services/dns/forward"
	"tapestry.dev/tapestry/share"
)

// monitored are the types that CoreDNS distinguishes in its metrics. All other types are counted as "other".
var monitored = [...]uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeSOA, dns.TypeCNAME, dns.TypePTR, dns.TypeTXT, dns.TypeNS, dns.TypeSRV, dns.TypeDS,
	dns.TypeDNSKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeHTTPS, dns.TypeIXFR, dns.TypeAXFR, dns.TypeANY,
}

// counts holds the counters of clients' questions.
type counts struct {
	requests  [2][2][len(monitored) + 1]atomic.Uint64 // TCP, IPv6, type
	responses forward.Rcodes
	seconds   *counter.Histogram
}

func newCounts() counts { return counts{seconds: forward.NewSeconds()} }

func (c *counts) note(from forward.Client, r, answer *dns.Msg, took time.Duration) {
	kind := len(monitored)
	if len(r.Question) == 1 {
		for i, t := range monitored {
			if t == r.Question[0].Qtype {
				kind = i
			}
		}
	}
	c.requests[index(from.TCP)][index(is6(from.Addr))][kind].Add(1)
	c.responses.Note(answer.Rcode)
	c.seconds.Observe(took.Seconds())
}

func index(is bool) int {
	if is {
		return 1
	}
	return 0
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

func (c *counts) requestsCounter() counter.Counter {
	list := counter.Counter{
		Name: "coredns_dns_requests_total", Help: "Questions to cluster DNS.", Kind: counter.Total, Labels: []string{"proto", "family", "type"},
	}
	for tcp, proto := range [...]string{"udp", "tcp"} {
		for v6, family := range [...]string{"1", "2"} { // CoreDNS uses IANA's numbers of address families
			for i := range c.requests[tcp][v6] {
				n := c.requests[tcp][v6][i].Load()
				if n == 0 {
					continue
				}
				kind := "other"
				if i < len(monitored) {
					kind = dns.TypeToString[monitored[i]]
				}
				list.Values = append(list.Values, counter.Value{Labels: []string{proto, family, kind}, N: float64(n)})
			}
		}
	}
	return list
}

func lost(s share.Stats) uint64 { return s.TakenFromMost + s.TakenFromOwn + s.Refused }

// Counters returns the Server's counters, under CoreDNS's names if CoreDNS counts the same.
func (s *Server) Counters() counter.List {
	tcp, waiting := s.conns.Stats(), s.waiting.Stats()
	return append(counter.List{
		s.counts.requestsCounter(),
		s.counts.responses.Counter("coredns_dns_responses_total", "Answers of cluster DNS, by their code."),
		s.counts.seconds.Counter("coredns_dns_request_duration_seconds", "How long questions to cluster DNS took."),
		counter.One(counter.Gauge, "tapestry_dns_connections", "Clients' TCP connections to cluster DNS.", tcp.Held),
		counter.One(counter.Total, "tapestry_dns_connections_lost_total",
			"Such connections closed for another: their client had more than its share.", lost(tcp)+lost(waiting)),
	}, s.forward.Counters()...)
}
