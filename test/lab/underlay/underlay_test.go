package underlay

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/test/lab/impair"
)

// recorder is a dns.ResponseWriter that records the answer.
type recorder struct {
	dns.ResponseWriter
	msg *dns.Msg
}

func (r *recorder) WriteMsg(m *dns.Msg) error { r.msg = m; return nil }
func (r *recorder) RemoteAddr() net.Addr      { return &net.UDPAddr{} }

func TestAnswerDNS(t *testing.T) {
	for _, test := range []struct {
		name  string
		kind  uint16
		rcode int
		want  string
	}{
		{"outside.example.", dns.TypeA, dns.RcodeSuccess, "203.0.113.10"},
		{"OUTSIDE.Example.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:113::10"},
		{"outside.example.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"other.example.", dns.TypeA, dns.RcodeNameError, ""},
	} {
		var r recorder
		answerDNS(&r, new(dns.Msg).SetQuestion(test.name, test.kind))
		var got []string
		for _, rr := range r.msg.Answer {
			got = append(got, rr.String())
		}
		text := strings.Join(got, "\n")
		if r.msg.Rcode != test.rcode || test.want == "" && text != "" || !strings.Contains(text, test.want) {
			t.Errorf("%s %s: %s %q, want %q", test.name, dns.TypeToString[test.kind], dns.RcodeToString[r.msg.Rcode], text, test.want)
		}
	}
	var r recorder
	if answerDNS(&r, new(dns.Msg).SetQuestion("www.Silent.example.", dns.TypeA)); r.msg != nil {
		t.Errorf("a name that is not answered was: %v", r.msg)
	}
}

func TestImpairmentString(t *testing.T) {
	for want, c := range map[string]impair.Config{
		"loss 1%, delay 5ms, jitter 1ms, seed 3":         {Loss: 0.01, Delay: 5 * time.Millisecond, Jitter: time.Millisecond, Seed: 3},
		"duplicate 2%, reorder 3%, rate 9 bit/s, seed 0": {Duplicate: 0.02, Reorder: 0.03, Rate: 9},
		"mtu 1400, no icmp, seed 0":                      {MTU: 1400},
		"mtu 1400, seed 0":                               {MTU: 1400, ICMP: true},
	} {
		if got := (&impairment{config: c}).String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
