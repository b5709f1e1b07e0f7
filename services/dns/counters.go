package dns

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/counter"
)

// monitored are the types that CoreDNS tells apart in its metrics; the others are one, "other".
var monitored = [...]uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeSOA, dns.TypeCNAME, dns.TypePTR, dns.TypeTXT, dns.TypeNS, dns.TypeSRV, dns.TypeDS,
	dns.TypeDNSKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeHTTPS, dns.TypeIXFR, dns.TypeAXFR, dns.TypeANY,
}

// rcodes are those of a message's header and EDNS (RFC 6895 2.3), and one for all above.
const rcodes = 25

// counts are what is counted of clients' questions.
type counts struct {
	requests  [2][2][len(monitored) + 1]atomic.Uint64 // TCP, IPv6, type
	responses rcodeCounts
	seconds   *counter.Histogram
}

func newCounts() counts { return counts{seconds: newSeconds()} }

// newSeconds has CoreDNS's buckets: from a quarter of a millisecond to 8 seconds.
func newSeconds() *counter.Histogram { return counter.NewHistogram(0.00025, 16) }

func (c *counts) note(from asker, r, answer *dns.Msg, took time.Duration) {
	kind := len(monitored)
	if len(r.Question) == 1 {
		for i, t := range monitored {
			if t == r.Question[0].Qtype {
				kind = i
			}
		}
	}
	c.requests[index(from.tcp)][index(is6(from.addr))][kind].Add(1)
	c.responses.note(answer.Rcode)
	c.seconds.Observe(took.Seconds())
}

func index(is bool) int {
	if is {
		return 1
	}
	return 0
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// rcodeCounts count answers by their code.
type rcodeCounts [rcodes]atomic.Uint64

func (c *rcodeCounts) note(rcode int) { c[min(max(rcode, 0), rcodes-1)].Add(1) }

func (c *rcodeCounts) counter(name, help string) counter.Counter {
	m := map[string]uint64{}
	for i := range c {
		if n := c[i].Load(); n > 0 || i == dns.RcodeSuccess {
			text, known := dns.RcodeToString[i]
			if !known {
				text = "other"
			}
			m[text] += n
		}
	}
	return counter.By(counter.Total, name, help, "rcode", m)
}

func (c *counts) requestsCounter() counter.Counter {
	list := counter.Counter{
		Name: "coredns_dns_requests_total", Help: "Questions to cluster DNS.", Kind: counter.Total, Labels: []string{"proto", "family", "type"},
	}
	for tcp, proto := range [...]string{"udp", "tcp"} {
		for v6, family := range [...]string{"1", "2"} { // CoreDNS has the numbers of address families (IANA)
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

// forwardCounts are what is counted of questions to upstreams.
type forwardCounts struct {
	requests, shared atomic.Uint64
	wrong            [otherCase]atomic.Uint64 // by mismatch-1
	responses        rcodeCounts
	seconds          *counter.Histogram
}

func newForwardCounts() forwardCounts { return forwardCounts{seconds: newSeconds()} }

func (c *forwardCounts) answer(answer []byte, took time.Duration) {
	c.responses.note(rcodeOf(answer))
	c.seconds.Observe(took.Seconds())
}

// Counters are what the Server counts, by CoreDNS's names where it counts the same.
func (s *Server) Counters() counter.List {
	f := s.forward
	waiting, tcp := f.waiting.Stats(), s.conns.Stats()
	return counter.List{
		s.counts.requestsCounter(),
		s.counts.responses.counter("coredns_dns_responses_total", "Answers of cluster DNS, by their code."),
		s.counts.seconds.Counter("coredns_dns_request_duration_seconds", "How long questions to cluster DNS took."),
		counter.One(counter.Total, "coredns_forward_requests_total", "Questions sent to upstreams, probes among them.", f.counts.requests.Load()),
		f.counts.responses.counter("coredns_forward_responses_total", "Answers of upstreams, by their code."),
		f.counts.seconds.Counter("coredns_forward_request_duration_seconds", "How long upstreams took to answer."),
		counter.One(counter.Total, "coredns_forward_healthcheck_failures_total", "Probes that an upstream did not answer.", f.upstreams.failures.Load()),
		counter.One(counter.Total, "coredns_forward_healthcheck_broken_total", "Questions for upstreams while none worked.", f.upstreams.broken.Load()),
		counter.One(counter.Total, "coredns_forward_max_concurrent_rejects_total",
			"Questions for upstreams given up for another: their client had more under way than its share.",
			waiting.TakenFromMost+waiting.TakenFromOwn+waiting.Refused),
		counter.One(counter.Gauge, "tapestry_dns_upstreams_working", "Upstreams that answer, as far as is known.", f.upstreams.working()),
		counter.One(counter.Gauge, "tapestry_dns_waiting", "Questions that clients wait for, until upstreams answer.", waiting.Held),
		counter.One(counter.Total, "tapestry_dns_shared_total", "Questions that shared an equal one under way.", f.counts.shared.Load()),
		counter.By(counter.Total, "tapestry_dns_wrong_answers_total",
			"Datagrams from upstreams' addresses that were not believed: of another id, question or spelling than was sent.", "wrong", map[string]uint64{
				"id": f.counts.wrong[otherId-1].Load(), "question": f.counts.wrong[otherQuestion-1].Load(), "spelling": f.counts.wrong[otherCase-1].Load(),
			}),
		counter.One(counter.Gauge, "tapestry_dns_connections", "Clients' TCP connections to cluster DNS.", tcp.Held),
		counter.One(counter.Total, "tapestry_dns_connections_lost_total",
			"Such connections closed for another: their client had more than its share.", tcp.TakenFromMost+tcp.TakenFromOwn+tcp.Refused),
	}
}
