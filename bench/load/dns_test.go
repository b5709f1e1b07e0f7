package load

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nameServer runs a DNS server on loopback until the test ends.
func nameServer(t *testing.T, h dns.HandlerFunc) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: c, Handler: h}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c.LocalAddr().String()
}

// answering returns a handler that answers with records, which are in the form of a zone file.
func answering(t *testing.T, records ...string) dns.HandlerFunc {
	var answer []dns.RR
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		answer = append(answer, rr)
	}
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = answer
		w.WriteMsg(m)
	}
}

func TestDNSQueries(t *testing.T) {
	addr := nameServer(t, answering(t, "web.bench.example. A 192.0.2.1", "web.bench.example. AAAA 2001:db8::1"))
	for _, o := range []Options{{}, {Streams: 4, QueryType: "AAAA"}, {Streams: 2, Rate: 500}} {
		o.Time, o.Name = short20, "web.bench.example"
		if o.Rate > 0 {
			o.Time = 10 * short20
		}
		r, err := DNSQueries(t.Context(), addr, o)
		if err != nil || r.Kind != "dns" || r.Transactions == 0 || r.Lost != 0 || r.Latency.P50 <= 0 || o.Rate > 0 && r.Due != 100 {
			t.Errorf("%+v: %+v, %v", o, r, err)
		}
	}
}

func TestDNSAnswersAreChecked(t *testing.T) {
	code := func(rcode int) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
	}
	for want, h := range map[string]dns.HandlerFunc{
		"NXDOMAIN":       code(dns.RcodeNameError),
		"SERVFAIL":       code(dns.RcodeServerFailure),
		"got no A":       answering(t, "web.bench.example. CNAME elsewhere.example."),
		"something else": func(w dns.ResponseWriter, q *dns.Msg) { q.Question[0].Name = "x."; answering(t)(w, q) },
		"read the answer": func(w dns.ResponseWriter, q *dns.Msg) {
			w.Write([]byte{byte(q.Id >> 8), byte(q.Id), 1, 2, 3})
		},
	} {
		_, err := DNSQueries(t.Context(), nameServer(t, h), Options{Time: short20, Name: "web.bench.example"})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, name := range []string{"", "a..b", strings.Repeat("x", 64)} {
		if _, err := DNSQueries(t.Context(), "127.0.0.1:53", Options{Name: name}); err == nil || !strings.Contains(err.Error(), "expected a domain name") {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

// A lost query is sent again, and its time counts from the first try. An answer to another query does not count.
func TestDNSLoss(t *testing.T) {
	var asked atomic.Int64
	answer := answering(t, "web.bench.example. A 192.0.2.1")
	addr := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if asked.Add(1) == 1 {
			q.Id++
		}
		answer(w, q)
	})
	r, err := DNSQueries(t.Context(), addr, Options{Time: short20, Name: "web.bench.example"})
	if err != nil || r.Lost != 1 || r.Transactions == 0 || time.Duration(r.Latency.Max) < lossTimeout*99/100 {
		t.Errorf("%+v, %v: expected one lost", r, err)
	}
}
