package forward

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/counter"
)

// NewSeconds returns a histogram for the durations of questions, with CoreDNS's buckets: from a quarter of a
// millisecond to 8 seconds.
func NewSeconds() *counter.Histogram { return counter.NewHistogram(0.00025, 16) }

// Rcodes counts answers by their code: one counter for each code of the message header and of EDNS (RFC 6895 2.3), and
// a last one for all higher codes.
type Rcodes [25]atomic.Uint64

// Note counts an answer.
func (c *Rcodes) Note(rcode int) { c[min(max(rcode, 0), len(c)-1)].Add(1) }

// Counter returns the counts, with the label rcode.
func (c *Rcodes) Counter(name, help string) counter.Counter {
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

// counts holds the counters of questions to upstreams.
type counts struct {
	requests, shared atomic.Uint64
	wrong            [otherCase]atomic.Uint64 // by mismatch-1
	responses        Rcodes
	seconds          *counter.Histogram
}

func newCounts() counts { return counts{seconds: NewSeconds()} }

func (c *counts) answer(answer []byte, took time.Duration) {
	c.responses.Note(rcodeOf(answer))
	c.seconds.Observe(took.Seconds())
}

// Counters returns the Forwarder's counters, under CoreDNS's names if CoreDNS counts the same.
func (f *Forwarder) Counters() counter.List {
	waiting := f.waiting.Stats()
	return counter.List{
		counter.One(counter.Total, "coredns_forward_requests_total", "Questions sent to upstreams, probes among them.", f.counts.requests.Load()),
		f.counts.responses.Counter("coredns_forward_responses_total", "Answers of upstreams, by their code."),
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
			"Datagrams from upstreams' addresses that were not believed: of another id, question or spelling than was sent, or no messages.", "wrong", map[string]uint64{
				"id": f.counts.wrong[otherId-1].Load(), "question": f.counts.wrong[otherQuestion-1].Load(), "spelling": f.counts.wrong[otherCase-1].Load(),
				"unreadable": f.counts.wrong[unreadable-1].Load(),
			}),
	}
}
