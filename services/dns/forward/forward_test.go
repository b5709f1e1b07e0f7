package forward

import (
	"context"
	"fmt"
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
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fixed(as ...netip.AddrPort) func() []netip.AddrPort {
	return func() []netip.AddrPort { return as }
}

// inMemory dials upstreams that are goroutines, for tests in a synctest bubble. An upstream whose answer is nil stays
// silent.
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
			far.Read(buf) // until the client has closed
		}()
		return near, nil
	}
}

// ends returns a context for a Forwarder that ends before the test's bubble does.
func ends(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx
}

var (
	up1 = netip.MustParseAddrPort("192.0.2.1:53")
	up2 = netip.MustParseAddrPort("192.0.2.2:53")
)

// client returns a test's client number n.
func client(n byte) Client { return Client{Addr: netip.AddrFrom4([4]byte{10, 0, 0, n})} }

// lookup asks for the address of a name.
func lookup(ctx context.Context, f *Forwarder, from Client, name string) *dns.Msg {
	return f.Exchange(ctx, from, new(dns.Msg).SetQuestion(name, dns.TypeA))
}

// One client asks for 300 names that no upstream answers, and 50 may be under way. The 10 lookups of another client
// all succeed. In an earlier version all 10 got SERVFAIL.
func TestFloodOfUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Upstreams: fixed(up1), MaxWaiting: 50, Dial: inMemory(func(_ netip.AddrPort, h heard) []byte {
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
				lookup(ctx, f, client(2), fmt.Sprintf("silent%d.example.com.", i))
				given.Add(1)
			})
			synctest.Wait()
		}
		if held, n := f.waiting.Held(client(2).Addr), given.Load(); held != 50 || n != 250 {
			t.Errorf("the client has %d questions under way and %d given up, want all 50 and 250", held, n)
		}
		failed := 0
		for i := range 10 {
			if m := lookup(ctx, f, client(1), fmt.Sprintf("www%d.example.com.", i)); len(m.Answer) != 1 {
				failed++
			}
		}
		if failed > 0 {
			t.Errorf("%d of 10 lookups of another client failed", failed)
		}
		// One more for the other client.
		if n := f.Counters().Get("coredns_forward_max_concurrent_rejects_total"); n != 251 {
			t.Errorf("%v questions were given up, want 251", n)
		}
		flood.Wait()
	})
}

// An upstream that leaves one name unanswered is still asked first. An upstream that leaves a probe unanswered is
// asked last, until it answers one.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deaf atomic.Bool
		f := New(Options{Upstreams: fixed(up1, up2), Dial: inMemory(func(u netip.AddrPort, h heard) []byte {
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
			if m := lookup(ctx, f, client(1), name); len(m.Answer) == 1 {
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
		expect("b.example.com.", "203.0.113.2", 2*time.Second) // the time it takes to detect the failure
		expect("c.example.com.", "203.0.113.2", 0)
		time.Sleep(time.Minute)
		expect("d.example.com.", "203.0.113.2", 0)
		deaf.Store(false)
		time.Sleep(probePause + f.opts.Timeout)
		expect("e.example.com.", "203.0.113.1", 0)
		if n := f.Counters().Get("coredns_forward_healthcheck_failures_total"); n < 30 || n > 60 {
			t.Errorf("%v probes failed in a minute", n)
		}
	})
}

// An upstream that refuses connections is detected at once.
func TestUpstreamRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := inMemory(func(_ netip.AddrPort, h heard) []byte { return says(h, "203.0.113.2") })
		f := New(Options{Upstreams: fixed(up1, up2), Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == up1.String() {
				return nil, syscall.ECONNREFUSED
			}
			return answer(ctx, network, address)
		}})
		ctx := ends(t)
		if m := lookup(ctx, f, client(1), "a.example.com."); len(m.Answer) != 1 {
			t.Errorf("got %v", m)
		}
		synctest.Wait()
		if got := f.upstreams.order(ctx, time.Now()); len(got) != 2 || got[0] != up2 {
			t.Errorf("the order is %v", got)
		}
	})
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Upstreams: fixed(up1, up2), Dial: inMemory(func(netip.AddrPort, heard) []byte { return nil })})
		ctx := ends(t)
		began := time.Now()
		if m := lookup(ctx, f, client(1), "a.example.com."); m.Rcode != dns.RcodeServerFailure || time.Since(began) > forwardTimeout {
			t.Errorf("after %s: %v", time.Since(began), m)
		}
		lookup(ctx, f, client(1), "b.example.com.")
		if n := f.Counters().Get("coredns_forward_healthcheck_broken_total"); n != 1 {
			t.Errorf("%v questions found no upstream at work, want 1", n)
		}
	})
}

// Clients that ask a question which is under way get the same answer, each with its own id and spelling. A client that
// gives up takes the answer from nobody else.
func TestAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var asked atomic.Int64
		f := New(Options{Upstreams: fixed(up1), Dial: inMemory(func(_ netip.AddrPort, h heard) []byte {
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
			if m := lookup(leaving, f, client(9), "www.example.com."); len(m.Answer) != 0 {
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
				m := f.Exchange(ctx, client(byte(i%3)), r)
				if m.Id != r.Id || len(m.Answer) != 1 || m.Answer[0].Header().Name != name || m.Question[0].Name != name {
					t.Errorf("%s: %v", name, m)
				}
			})
		}
		synctest.Wait()
		if n := f.waiting.Stats().Held; n != 20 {
			t.Errorf("%d wait, want 20", n)
		}
		leave()
		synctest.Wait()
		close(release)
		all.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("20 equal questions came as %d", n)
		}
		if n := f.Counters().Get("tapestry_dns_shared_total"); n != 19 {
			t.Errorf("%v shared an answer, want 19", n)
		}
		if len(f.flights) != 0 || f.waiting.Stats().Held != 0 {
			t.Errorf("%d flights and %d units are left", len(f.flights), f.waiting.Stats().Held)
		}
	})
}

// A question for which nobody waits any longer is not asked to the end.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Upstreams: fixed(up1), Dial: inMemory(func(netip.AddrPort, heard) []byte { return nil })})
		ctx, cancel := context.WithCancel(ends(t))
		done := make(chan struct{})
		go func() { defer close(done); lookup(ctx, f, client(1), "www.example.com.") }()
		synctest.Wait()
		cancel()
		<-done
		synctest.Wait()
		if len(f.flights) != 0 {
			t.Error("it is still under way")
		}
		if got := f.upstreams.order(t.Context(), time.Now()); len(got) != 1 || f.upstreams.state[up1].failing {
			t.Error("the upstream is thought to fail")
		}
	})
}

// Questions that differ in more than the spelling of the name have different keys.
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
		"CD": func(m *dns.Msg) { m.CheckingDisabled = true }, "DO": func(m *dns.Msg) { m.SetEdns0(1232, true) },
		"option": func(m *dns.Msg) {
			opt := m.SetEdns0(1232, false).IsEdns0()
			opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 8, Address: net.IPv4(10, 0, 0, 0)})
		},
	} {
		k := key(false, edit)
		if other, taken := seen[k]; taken {
			t.Errorf("%s is taken for %s", name, other)
		}
		seen[k] = name
	}
	if len(seen) != 7 {
		t.Errorf("%d keys", len(seen))
	}
	for _, size := range []uint16{512, 600, UDPSize, 4096} {
		if key(false, func(m *dns.Msg) { m.SetEdns0(size, false) }) != plain {
			t.Errorf("upstreams are asked for datagrams of the client's size, %d", size)
		}
	}
}
