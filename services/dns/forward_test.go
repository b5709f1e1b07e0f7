package dns

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestOwnAddressIsNoUpstream(t *testing.T) {
	s := answering(Options{Upstreams: fixed(netip.MustParseAddrPort("10.96.0.10:53"))})
	r := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	if m := s.reply(t.Context(), asker{}, r); m.Rcode != dns.RcodeRefused {
		t.Errorf("got %v", m)
	}
}

// TestLoop has the server as its own upstream, under an address that it cannot know as its own.
func TestLoop(t *testing.T) {
	pc, l, addr := listen(t)
	s := answering(Options{Upstreams: fixed(addr), Timeout: time.Second, MaxForwards: 50})
	serveOn(t, s, pc, l)
	ask(t, addr, "udp", "example.com.", dns.TypeA)
	eventually(t, "the loop is found", func() bool { return len(s.forward.upstreams.order(t.Context(), time.Now())) == 0 })
	if m := ask(t, addr, "udp", "example.com.", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("got %v", m)
	}
}

// inMemory dials upstreams that are goroutines, for tests in which time is their own. An upstream that gives no answer is silent.
func inMemory(answer func(u netip.AddrPort, h heard) []byte) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, address string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			buf := make([]byte, 65535)
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			h := heard{wire: buf[:n], tcp: network == "tcp"}
			if b := answer(netip.MustParseAddrPort(address), h); b != nil {
				far.Write(b)
			}
			far.Read(buf) // until whoever asked is gone
		}()
		return near, nil
	}
}

// ends has the life of a Server end before the bubble of a test does.
func ends(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx
}

var (
	up1 = netip.MustParseAddrPort("192.0.2.1:53")
	up2 = netip.MustParseAddrPort("192.0.2.2:53")
)

// client is the n-th of a test's.
func client(n byte) asker { return asker{addr: netip.AddrFrom4([4]byte{10, 0, 0, n})} }

// lookup asks for the address of a name.
func lookup(ctx context.Context, s *Server, from asker, name string) *dns.Msg {
	return s.reply(ctx, from, new(dns.Msg).SetQuestion(name, dns.TypeA))
}

// One client asks for 300 names that nobody answers for, of which 50 may be under way. Nobody else's lookup fails for that:
// 10 of 10 are answered, where before 10 of 10 were SERVFAIL.
func TestFloodOfUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Upstreams: fixed(up1), MaxForwards: 50, Dial: inMemory(func(_ netip.AddrPort, h heard) []byte {
			if strings.HasPrefix(strings.ToLower(h.name()), "silent") {
				return nil
			}
			return says(h, "203.0.113.80")
		})})
		ctx := ends(t)
		var flood sync.WaitGroup
		var given atomic.Int64
		for i := range 300 {
			flood.Go(func() {
				lookup(ctx, s, client(2), fmt.Sprintf("silent%d.example.com.", i))
				given.Add(1)
			})
			synctest.Wait()
		}
		if held, n := s.forward.waiting.Held(client(2).addr), given.Load(); held != 50 || n != 250 {
			t.Errorf("the client has %d questions under way and %d given up, want all 50 and 250", held, n)
		}
		failed := 0
		for i := range 10 {
			if m := lookup(ctx, s, client(1), fmt.Sprintf("www%d.example.com.", i)); len(m.Answer) != 1 {
				failed++
			}
		}
		if failed > 0 {
			t.Errorf("%d of 10 lookups of another client failed", failed)
		}
		if n := s.Counters().Get("coredns_forward_max_concurrent_rejects_total"); n != 251 { // one more for the other client
			t.Errorf("%v questions were given up, want 251", n)
		}
		flood.Wait()
	})
}

func TestClientOf(t *testing.T) {
	for _, a := range []net.Addr{
		&net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8}, otherAddr("10.0.0.1:9"), otherAddr("[::ffff:10.0.0.1]:9"),
	} {
		if got := clientOf(a); got.String() != "10.0.0.1" {
			t.Errorf("%T: %s", a, got)
		}
	}
	if got := clientOf(otherAddr("@")); got.IsValid() {
		t.Errorf("got %s of an address that is none", got)
	}
}

type otherAddr string

func (otherAddr) Network() string  { return "other" }
func (a otherAddr) String() string { return string(a) }

// One client's idle connections are as many as there may be. Another is answered at once, and the first loses the one that
// was idle for longest.
func TestIdleConnections(t *testing.T) {
	s := New(Options{MaxConns: 8})
	s.Set(Config{})
	server := start(t, s)
	connect := func(local string) *dns.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		c, err := d.DialContext(t.Context(), "tcp", server.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return &dns.Conn{Conn: c}
	}
	answered := func(c *dns.Conn) error {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("dns-version.cluster.local.", dns.TypeTXT)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	var idle []*dns.Conn
	for range 8 {
		idle = append(idle, connect("127.0.0.2"))
		if err := answered(idle[len(idle)-1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := answered(idle[0]); err != nil { // now the second is idle for longest
		t.Fatal(err)
	}
	began := time.Now()
	if err := answered(connect("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > idleTimeout/2 {
		t.Errorf("another client waited for %s", took)
	}
	if err := answered(idle[1]); err == nil {
		t.Error("the connection idle for longest is still there")
	}
	if err := answered(idle[0]); err != nil {
		t.Errorf("the connection in use was taken: %v", err)
	}
	if n := s.Counters().Get("tapestry_dns_connections_lost_total"); n != 1 {
		t.Errorf("%v connections were taken, want 1", n)
	}
}

// A name that an upstream says nothing to tells nothing of the upstream, which is still asked first. Its silence to a probe does,
// until it answers one.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deaf atomic.Bool
		s := New(Options{Upstreams: fixed(up1, up2), Dial: inMemory(func(u netip.AddrPort, h heard) []byte {
			name := strings.ToLower(h.name())
			if u == up1 && (deaf.Load() || strings.HasPrefix(name, "half")) || strings.HasPrefix(name, "silent") {
				return nil
			}
			return says(h, "203.0.113."+fmt.Sprint(u.Addr().As4()[3]))
		})})
		ctx := ends(t)
		expect := func(name, want string, within time.Duration) {
			t.Helper()
			began := time.Now()
			got := "nothing"
			if m := lookup(ctx, s, client(1), name); len(m.Answer) == 1 {
				got = m.Answer[0].(*dns.A).A.String()
			}
			if took := time.Since(began); got != want || took > within {
				t.Errorf("%s: %s after %s, want %s within %s", name, got, took, want, within)
			}
		}
		for i := range 3 {
			expect(fmt.Sprintf("silent%d.example.com.", i), "nothing", forwardTimeout)
			expect("a.example.com.", "203.0.113.1", 0)
			expect(fmt.Sprintf("half%d.example.com.", i), "203.0.113.2", 2*time.Second)
			expect("a.example.com.", "203.0.113.1", 0)
		}
		deaf.Store(true)
		expect("b.example.com.", "203.0.113.2", 2*time.Second) // which is what it takes to find out
		expect("c.example.com.", "203.0.113.2", 0)
		time.Sleep(time.Minute)
		expect("d.example.com.", "203.0.113.2", 0)
		deaf.Store(false)
		time.Sleep(healthPause + s.opts.Timeout)
		expect("e.example.com.", "203.0.113.1", 0)
		if n := s.Counters().Get("coredns_forward_healthcheck_failures_total"); n < 30 || n > 60 {
			t.Errorf("%v probes failed in a minute", n)
		}
	})
}

// An upstream that refuses is told from one that is there at once.
func TestUpstreamRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := inMemory(func(_ netip.AddrPort, h heard) []byte { return says(h, "203.0.113.2") })
		s := New(Options{Upstreams: fixed(up1, up2), Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == up1.String() {
				return nil, syscall.ECONNREFUSED
			}
			return answer(ctx, network, address)
		}})
		ctx := ends(t)
		if m := lookup(ctx, s, client(1), "a.example.com."); len(m.Answer) != 1 {
			t.Errorf("got %v", m)
		}
		synctest.Wait()
		if got := s.forward.upstreams.order(ctx, time.Now()); len(got) != 2 || got[0] != up2 {
			t.Errorf("the order is %v", got)
		}
	})
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Upstreams: fixed(up1, up2), Dial: inMemory(func(netip.AddrPort, heard) []byte { return nil })})
		ctx := ends(t)
		began := time.Now()
		if m := lookup(ctx, s, client(1), "a.example.com."); m.Rcode != dns.RcodeServerFailure || time.Since(began) > forwardTimeout {
			t.Errorf("after %s: %v", time.Since(began), m)
		}
		lookup(ctx, s, client(1), "b.example.com.")
		if n := s.Counters().Get("coredns_forward_healthcheck_broken_total"); n != 1 {
			t.Errorf("%v questions found no upstream at work, want 1", n)
		}
	})
}

// Whoever asks what is being asked gets that answer, each with an id and a spelling of its own; and who gives up takes it from
// nobody.
func TestAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var asked atomic.Int64
		s := New(Options{Upstreams: fixed(up1), Dial: inMemory(func(_ netip.AddrPort, h heard) []byte {
			if !h.probe() {
				asked.Add(1)
				<-release
			}
			return says(h, "203.0.113.80")
		})})
		ctx := ends(t)
		var all sync.WaitGroup
		leaving, leave := context.WithCancel(ctx)
		all.Go(func() {
			if m := lookup(leaving, s, client(9), "www.example.com."); len(m.Answer) != 0 {
				t.Errorf("who gave up got %v", m)
			}
		})
		synctest.Wait()
		for i := range 19 {
			name := "www.example.com."
			if i%2 == 1 {
				name = "WWW.Example.com."
			}
			all.Go(func() {
				r := new(dns.Msg).SetQuestion(name, dns.TypeA)
				m := s.reply(ctx, client(byte(i%3)), r)
				if m.Id != r.Id || len(m.Answer) != 1 || m.Answer[0].Header().Name != name || m.Question[0].Name != name {
					t.Errorf("%s: %v", name, m)
				}
			})
		}
		synctest.Wait()
		if n := s.forward.waiting.Stats().Held; n != 20 {
			t.Errorf("%d wait, want 20", n)
		}
		leave()
		synctest.Wait()
		close(release)
		all.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("20 equal questions came as %d", n)
		}
		if n := s.Counters().Get("tapestry_dns_shared_total"); n != 19 {
			t.Errorf("%v shared an answer, want 19", n)
		}
		if len(s.forward.flights) != 0 || s.forward.waiting.Stats().Held != 0 {
			t.Errorf("%d flights and %d units are left", len(s.forward.flights), s.forward.waiting.Stats().Held)
		}
	})
}

// A question that nobody waits for any longer is not asked to the end.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Upstreams: fixed(up1), Dial: inMemory(func(netip.AddrPort, heard) []byte { return nil })})
		ctx, cancel := context.WithCancel(ends(t))
		done := make(chan struct{})
		go func() { defer close(done); lookup(ctx, s, client(1), "www.example.com.") }()
		synctest.Wait()
		cancel()
		<-done
		synctest.Wait()
		if len(s.forward.flights) != 0 {
			t.Error("it is still under way")
		}
		if got := s.forward.upstreams.order(t.Context(), time.Now()); len(got) != 1 || s.forward.upstreams.state[up1].failing {
			t.Error("the upstream is thought to fail")
		}
	})
}

func TestCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Upstreams: fixed(up1), Dial: inMemory(func(_ netip.AddrPort, h heard) []byte {
			return says(h, "203.0.113.80", func(m *dns.Msg) { m.Rcode = dns.RcodeNameError })
		})})
		ctx := ends(t)
		w := &writer{}
		for _, q := range []struct {
			name  string
			qtype uint16
		}{{"a.example.com.", dns.TypeA}, {"b.example.com.", dns.TypeA}, {"c.example.com.", dns.TypeLOC}, {"cluster.local.", dns.TypeSOA}} {
			s.handle(ctx, w, new(dns.Msg).SetQuestion(q.name, q.qtype))
		}
		if w.written != 4 {
			t.Errorf("%d answers", w.written)
		}
		list := s.Counters()
		got := map[string]float64{}
		for _, v := range list.Find("coredns_dns_requests_total").Values {
			got[strings.Join(v.Labels, " ")] = v.N
		}
		if want := map[string]float64{"udp 2 A": 2, "udp 2 other": 1, "udp 2 SOA": 1}; !maps.Equal(got, want) {
			t.Errorf("requests: %v, want %v", got, want)
		}
		// Before there is a Config the zone is a failure.
		if got, want := list.Of("coredns_dns_responses_total"), map[string]float64{"NOERROR": 0, "NXDOMAIN": 3, "SERVFAIL": 1}; !maps.Equal(got, want) {
			t.Errorf("responses: %v, want %v", got, want)
		}
		if v := list.Find("coredns_dns_request_duration_seconds").Values[0]; v.Count != 4 {
			t.Errorf("durations: %+v", v)
		}
		if got := list.Of("coredns_forward_responses_total")["NXDOMAIN"]; got < 3 || list.Get("coredns_forward_requests_total") < 3 {
			t.Errorf("%v answers of upstreams to %v questions", got, list.Get("coredns_forward_requests_total"))
		}
		seen := map[string]bool{}
		for _, c := range list {
			if seen[c.Name] || c.Help == "" || c.Kind == "" {
				t.Errorf("%+v stands there twice, or says too little", c)
			}
			seen[c.Name] = true
		}
	})
}

// writer is a client over UDP of IPv6.
type writer struct {
	dns.ResponseWriter
	written int
}

func (w *writer) RemoteAddr() net.Addr    { return &net.UDPAddr{IP: net.ParseIP("fd00::1"), Port: 7} }
func (w *writer) WriteMsg(*dns.Msg) error { w.written++; return nil }

// Questions that differ in more than the spelling of the name are not one.
func TestKey(t *testing.T) {
	key := func(tcp bool, edit func(*dns.Msg)) string {
		m := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
		edit(m)
		q, err := newQuestion(m)
		if err != nil {
			t.Fatal(err)
		}
		return q.key(tcp)
	}
	plain := key(false, func(*dns.Msg) {})
	for name, edit := range map[string]func(*dns.Msg){
		"id": func(m *dns.Msg) { m.Id = 7 }, "spelling": func(m *dns.Msg) { m.Question[0].Name = "wWw.exAmple.com." },
	} {
		if key(false, edit) != plain {
			t.Errorf("another %s is another question", name)
		}
	}
	seen := map[string]string{plain: "plain", key(true, func(*dns.Msg) {}): "TCP"}
	for name, edit := range map[string]func(*dns.Msg){
		"name": func(m *dns.Msg) { m.Question[0].Name = "www2.example.com." }, "type": func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"CD": func(m *dns.Msg) { m.CheckingDisabled = true }, "EDNS": func(m *dns.Msg) { m.SetEdns0(1232, false) },
		"DO": func(m *dns.Msg) { m.SetEdns0(1232, true) }, "size": func(m *dns.Msg) { m.SetEdns0(600, false) },
	} {
		k := key(false, edit)
		if other, taken := seen[k]; taken {
			t.Errorf("%s is taken for %s", name, other)
		}
		seen[k] = name
	}
	if len(seen) != 8 {
		t.Errorf("%d keys", len(seen))
	}
	big := func(m *dns.Msg) { m.SetEdns0(4096, false) }
	if key(false, big) != key(false, func(m *dns.Msg) { m.SetEdns0(udpSize, false) }) {
		t.Error("upstreams are asked for datagrams that are fragmented")
	}
}
