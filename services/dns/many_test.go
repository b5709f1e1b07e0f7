package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/dns/forward"
)

// many is a headless Service of n endpoints, every tenth of which has a hostname.
func many(n int) *Service {
	s := &Service{Namespace: "d", Name: "many", Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}}}
	for i := range n {
		e := Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}}}
		if i%10 == 0 {
			e.Hostname = fmt.Sprintf("host-%d", i)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// manyQuestions are those about many whose answers are picked from its endpoints.
var manyQuestions = []struct {
	name  string
	ask   string
	qtype uint16
	tcp   bool
}{
	{"A", "many.d.svc.cluster.local.", dns.TypeA, false},
	{"A over TCP", "many.d.svc.cluster.local.", dns.TypeA, true},
	{"AAAA", "many.d.svc.cluster.local.", dns.TypeAAAA, false},
	{"SRV", "_http._tcp.many.d.svc.cluster.local.", dns.TypeSRV, false},
	{"one by hostname", "host-100.many.d.svc.cluster.local.", dns.TypeA, false},
	{"one by address", "10-0-0-101.many.d.svc.cluster.local.", dns.TypeA, false},
	{"no such endpoint", "none.many.d.svc.cluster.local.", dns.TypeA, false},
	{"PTR", "101.0.0.10.in-addr.arpa.", dns.TypePTR, false},
}

// BenchmarkManyEndpoints is a question about a headless Service of 20,000 endpoints, from the question to the answer's
// bytes.
func BenchmarkManyEndpoints(b *testing.B) {
	s := New(Options{})
	s.Set(Config{Services: []*Service{many(20000)}})
	for _, q := range manyQuestions {
		b.Run(q.name, func(b *testing.B) {
			r := new(dns.Msg).SetQuestion(q.ask, q.qtype)
			r.SetEdns0(1232, false)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.reply(b.Context(), forward.Client{TCP: q.tcp}, r).Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("first after a change", func(b *testing.B) {
		svc := many(20000)
		r := new(dns.Msg).SetQuestion("many.d.svc.cluster.local.", dns.TypeA)
		b.ReportAllocs()
		for b.Loop() {
			s.Set(Config{Services: []*Service{svc}})
			s.reply(b.Context(), forward.Client{}, r)
		}
	})
}

// TestCostIsWhatIsAnswered: a question about a Service of 20,000 endpoints costs as many allocations as a question
// about
// 400. It was 40,076 allocations for A, and 388,352 for SRV.
func TestCostIsWhatIsAnswered(t *testing.T) {
	few, lots := New(Options{}), New(Options{})
	few.Set(Config{Services: []*Service{many(400)}})
	lots.Set(Config{Services: []*Service{many(20000)}})
	for _, q := range manyQuestions {
		if q.tcp {
			continue // 400 do not fill that message
		}
		r := new(dns.Msg).SetQuestion(q.ask, q.qtype)
		r.SetEdns0(1232, false)
		cost := func(s *Server) float64 {
			return testing.AllocsPerRun(20, func() { s.reply(t.Context(), forward.Client{}, r) })
		}
		if a, b := cost(few), cost(lots); b > 1.3*a+5 {
			t.Errorf("%s: %v allocations of 400 endpoints, %v of 20,000", q.name, a, b)
		}
	}
}

// TestOneNameOfAll: when all endpoints have one hostname, there is one SRV record. Its addresses are cut to what fits.
func TestOneNameOfAll(t *testing.T) {
	svc := many(20000)
	for i := range svc.Endpoints {
		svc.Endpoints[i].Hostname = "all"
	}
	s := New(Options{})
	s.Set(Config{Services: []*Service{svc}})
	r := new(dns.Msg).SetQuestion("_http._tcp.many.d.svc.cluster.local.", dns.TypeSRV)
	if m := s.reply(t.Context(), forward.Client{}, r); len(m.Answer) != 1 || len(m.Extra) > 512/aLen {
		t.Errorf("%d records and %d addresses", len(m.Answer), len(m.Extra))
	}
	if n := testing.AllocsPerRun(20, func() { s.reply(t.Context(), forward.Client{}, r) }); n > 200 {
		t.Errorf("%v allocations", n)
	}
}

// TestWhatFitsIsChosenAtRandom: every endpoint is in the answers as often as after a shuffle of all endpoints, and as
// often in the first place.
func TestWhatFitsIsChosenAtRandom(t *testing.T) {
	s := New(Options{})
	s.Set(Config{Services: []*Service{many(100)}})
	r := new(dns.Msg).SetQuestion("many.d.svc.cluster.local.", dns.TypeA)
	const asked = 2000
	count, first := map[string]int{}, map[string]int{}
	size := 0
	for range asked {
		m := s.reply(t.Context(), forward.Client{}, r)
		seen := map[string]bool{}
		for i, rr := range m.Answer {
			a := rr.(*dns.A).A.String()
			if seen[a] {
				t.Fatalf("%s stands there twice: %v", a, m)
			}
			seen[a] = true
			count[a]++
			if i == 0 {
				first[a]++
			}
		}
		if size = len(m.Answer); !m.Truncated || size < 20 || size > 32 {
			t.Fatalf("%d answers, truncated %v", size, m.Truncated)
		}
	}
	// Six standard deviations are 127 for counts, and 27 for firsts. A fair choice exceeds them once in 500 million
	// times.
	mean := asked * size / 100
	for i := range 100 {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String()
		if n := count[a]; n < mean-127 || n > mean+127 {
			t.Errorf("%s was %d times among the answers, about %d are expected", a, n, mean)
		}
		if n := first[a]; n == 0 || n > 20+27 {
			t.Errorf("%s was the first %d times, about 20 are expected", a, n)
		}
	}
}

// TestPick: pick returns as many different elements of the list as it is asked for, and leaves the list unchanged.
func TestPick(t *testing.T) {
	for n := range 40 {
		list := make([]int, n)
		for i := range list {
			list[i] = i
		}
		for most := 1; most <= n+2; most++ {
			got := pick(list, most)
			sorted := slices.Clone(got)
			slices.Sort(sorted)
			if len(got) != min(n, most) || len(slices.Compact(sorted)) != len(got) || len(got) > 0 && (sorted[0] < 0 || sorted[len(got)-1] >= n) {
				t.Fatalf("%d of %d: %v", most, n, got)
			}
			if !slices.IsSorted(list) {
				t.Fatal("the list was changed")
			}
		}
	}
}

// BenchmarkBesideMany is another client's question about a small Service while one client asks for one of 20,000
// endpoints 30 times a second. With -cpu 1 they share a processor.
func BenchmarkBesideMany(b *testing.B) {
	s := New(Options{})
	c := testConfig()
	c.Services = append(c.Services, many(20000))
	s.Set(c)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second / 30)
		defer tick.Stop()
		r := new(dns.Msg).SetQuestion("many.d.svc.cluster.local.", dns.TypeA)
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.reply(b.Context(), forward.Client{}, r)
			}
		}
	}()
	r := new(dns.Msg).SetQuestion("dual.default.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		s.reply(b.Context(), forward.Client{}, r)
	}
	close(stop)
	<-done
}
