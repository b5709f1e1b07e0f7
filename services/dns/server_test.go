package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/dns/forward"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen opens a UDP socket and a TCP socket on the same loopback port.
func listen(t *testing.T) (net.PacketConn, net.Listener, netip.AddrPort) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		return pc, l, netip.MustParseAddrPort(l.Addr().String())
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil, netip.AddrPort{}
}

// start serves s on loopback until the test ends, and returns its address.
func start(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	pc, l, addr := listen(t)
	serveOn(t, s, pc, l)
	return addr
}

func serveOn(t *testing.T, s *Server, pc net.PacketConn, l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, pc, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// upstreamServer starts a resolver that knows a few names. The counter counts its questions, except probes.
func upstreamServer(t *testing.T) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	pc, l, addr := listen(t)
	asked := new(atomic.Int64)
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		switch q := r.Question[0]; strings.ToLower(q.Name) {
		case "www.example.com.":
			if q.Qtype == dns.TypeA {
				rr, _ := dns.NewRR("www.example.com. 60 IN A 203.0.113.80")
				m.Answer = append(m.Answer, rr)
			}
		case "big.example.com.":
			for i := range 60 {
				rr, _ := dns.NewRR(fmt.Sprintf("big.example.com. 60 IN TXT \"%s%d\"", strings.Repeat("x", 50), i))
				m.Answer = append(m.Answer, rr)
			}
		case "broken.example.com.":
			m.Rcode = dns.RcodeServerFailure
		default:
			m.Rcode = dns.RcodeNameError
		}
		if !strings.HasSuffix(strings.ToLower(r.Question[0].Name), ".loop-probe.tapestry.") {
			asked.Add(1)
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			size := dns.MinMsgSize
			if opt := r.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
			}
			m.Truncate(size)
		}
		w.WriteMsg(m)
	})
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started, done := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { srv.Shutdown(); <-done })
	}
	return addr, asked
}

func ask(t *testing.T, addr netip.AddrPort, network, name string, qtype uint16, edit ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	for _, f := range edit {
		f(m)
	}
	c := dns.Client{Net: network, Timeout: await.Patience}
	got, _, err := c.Exchange(m, addr.String())
	if err != nil {
		t.Fatalf("%s %s over %s: %v", dns.TypeToString[qtype], name, network, err)
	}
	return got
}

func fixed(as ...netip.AddrPort) func() []netip.AddrPort {
	return func() []netip.AddrPort { return as }
}

func TestServe(t *testing.T) {
	up, asked := upstreamServer(t)
	addr := start(t, answering(Options{Upstreams: fixed(up)}))
	for _, network := range []string{"udp", "tcp"} {
		m := ask(t, addr, network, "dual.default.svc.cluster.local.", dns.TypeA)
		if got := text(m.Answer); got != "dual.default.svc.cluster.local. A 10.96.0.2" || !m.Authoritative {
			t.Errorf("%s: %v", network, m)
		}
		if n := asked.Load(); n != 0 {
			t.Errorf("%d questions about the cluster were forwarded", n)
		}
		m = ask(t, addr, network, "WWW.example.com.", dns.TypeA)
		if got := text(m.Answer); got != "www.example.com. A 203.0.113.80" || m.Authoritative || m.Question[0].Name != "WWW.example.com." {
			t.Errorf("%s: %v", network, m)
		}
		m = ask(t, addr, network, "ext.default.svc.cluster.local.", dns.TypeA)
		if got := text(m.Answer); got != lines("ext.default.svc.cluster.local. CNAME www.example.com.", "www.example.com. A 203.0.113.80") {
			t.Errorf("%s: %v", network, m)
		}
		if m = ask(t, addr, network, "none.example.com.", dns.TypeA); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", network, m)
		}
		if m = ask(t, addr, network, "7.7.0.10.in-addr.arpa.", dns.TypePTR); m.Rcode != dns.RcodeNameError || m.Authoritative {
			t.Errorf("%s: the upstream is not asked for an unknown private address: %v", network, m)
		}
		if m = ask(t, addr, network, "broken.example.com.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: %v", network, m)
		}
		asked.Store(0)
	}
	if m := ask(t, addr, "udp", "big.example.com.", dns.TypeTXT); !m.Truncated {
		t.Error("forwarded answer over UDP is not marked as truncated")
	}
	if m := ask(t, addr, "tcp", "big.example.com.", dns.TypeTXT); m.Truncated || len(m.Answer) != 60 {
		t.Errorf("forwarded answer over TCP has %d records, truncated %v", len(m.Answer), m.Truncated)
	}
}

// TestServeOtherStack serves on sockets that are not the kernel's.
func TestServeOtherStack(t *testing.T) {
	pc, l, addr := listen(t)
	serveOn(t, answering(Options{}), struct{ net.PacketConn }{pc}, struct{ net.Listener }{l})
	for _, network := range []string{"udp", "tcp"} {
		if m := ask(t, addr, network, "dual.default.svc.cluster.local.", dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("%s: %v", network, m)
		}
	}
}

func TestServeClosedSocket(t *testing.T) {
	pc, l, _ := listen(t)
	l.Close()
	if err := answering(Options{}).Serve(t.Context(), pc, l); err == nil {
		t.Error("serving on a closed socket went well")
	}
	if _, err := pc.WriteTo([]byte("x"), pc.LocalAddr()); err == nil {
		t.Error("the other socket is still open")
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("search example.com\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n")
	got, err := ResolvConf(path)
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	write("nameserver nonsense\n")
	if _, err := ResolvConf(path); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
	if _, err := ResolvConf(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s := answering(Options{})
	unready := New(Options{})
	question := func(name string, qtype uint16, edit func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg)
		m.SetQuestion(name, qtype)
		if edit != nil {
			edit(m)
		}
		return m
	}
	tests := []struct {
		name string
		s    *Server
		r    *dns.Msg
		want int
	}{
		{"no upstream", s, question("example.com.", dns.TypeA, nil), dns.RcodeRefused},
		{"no Config", unready, question("kubernetes.default.svc.cluster.local.", dns.TypeA, nil), dns.RcodeServerFailure},
		{"circle of CNAMEs", s, question("circle.default.svc.cluster.local.", dns.TypeA, nil), dns.RcodeServerFailure},
		{"zone transfer", s, question("cluster.local.", dns.TypeAXFR, nil), dns.RcodeRefused},
		{"class CHAOS", s, question("version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"update", s, question("cluster.local.", dns.TypeSOA, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"two questions", s, question("a.", dns.TypeA, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"no question", s, question("a.", dns.TypeA, func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"EDNS version", s, question("cluster.local.", dns.TypeSOA, func(m *dns.Msg) { m.SetEdns0(1232, false).IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := tt.s.reply(t.Context(), forward.Client{}, tt.r)
			if m.Rcode != tt.want || m.Id != tt.r.Id || !m.Response {
				t.Errorf("got %v, want %s", m, dns.RcodeToString[tt.want])
			}
			if _, err := m.Pack(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTruncation(t *testing.T) {
	s := Service{Namespace: "d", Name: "many"}
	for i := range 200 {
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Ports: []Port{{Protocol: packet.TCP, Port: 80}}})
	}
	server := New(Options{})
	server.Set(Config{Services: []*Service{&s}})
	addr := start(t, server)
	const name = "many.d.svc.cluster.local."
	for _, tt := range []struct {
		client, limit int
	}{{0, 512}, {100, 512}, {800, 800}, {4096, forward.UDPSize}} {
		m := ask(t, addr, "udp", name, dns.TypeA, func(m *dns.Msg) {
			if tt.client > 0 {
				m.SetEdns0(uint16(tt.client), false)
			}
		})
		m.Compress = true
		if !m.Truncated || len(m.Answer) == 0 || m.Len() > tt.limit || (m.IsEdns0() != nil) != (tt.client > 0) {
			t.Errorf("EDNS size %d: truncated %v, %d records, %d bytes, want at most %d; EDNS %v",
				tt.client, m.Truncated, len(m.Answer), m.Len(), tt.limit, m.IsEdns0())
		}
	}
	if m := ask(t, addr, "tcp", name, dns.TypeA); m.Truncated || len(m.Answer) != 200 {
		t.Errorf("TCP: truncated %v, %d records", m.Truncated, len(m.Answer))
	}
}

func TestSet(t *testing.T) {
	s := answering(Options{})
	r := new(dns.Msg).SetQuestion("new.default.svc.cluster.local.", dns.TypeA)
	if m := s.reply(t.Context(), forward.Client{}, r); m.Rcode != dns.RcodeNameError {
		t.Fatal(m)
	}
	c := Config{Services: []*Service{{Namespace: "default", Name: "new", ClusterIPs: addresstest.Addrs("10.96.0.77")}}}
	s.Set(c)
	if m := s.reply(t.Context(), forward.Client{}, r); text(m.Answer) != "new.default.svc.cluster.local. A 10.96.0.77" {
		t.Error(m)
	}
	view := s.view()
	c.Addrs = nil
	if s.Set(c); s.view() != view {
		t.Error("the same Config was indexed again")
	}
	c.Services = append(c.Services[:1:1], &Service{Namespace: "default", Name: "newer"})
	same := nsName{"default", "new"}
	if s.Set(c); s.view().services[same] != view.services[same] {
		t.Error("a Service that is the same was sorted out again")
	}
	if s.view() == view || s.view().services[nsName{"default", "newer"}] == nil {
		t.Error("a Service that has come is not answered for")
	}
}

func FuzzReply(f *testing.F) {
	s := answering(Options{})
	for _, name := range []string{"dual.default.svc.cluster.local.", "_db._tcp.db.data.svc.cluster.local.", "1.0.0.10.in-addr.arpa.", "cluster.local.", ".", `a\.b.svc.cluster.local.`} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeANY)
		m.SetEdns0(4096, true)
		b, _ := m.Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := new(dns.Msg)
		if r.Unpack(b) != nil {
			return
		}
		for _, tcp := range []bool{false, true} {
			m := s.reply(t.Context(), forward.Client{TCP: tcp}, r)
			if m.Id != r.Id || !m.Response {
				t.Fatalf("%v is no answer to %v", m, r)
			}
			out, err := m.Pack()
			if err != nil {
				t.Fatalf("cannot pack the answer to %v: %v", r, err)
			}
			if !tcp && len(out) > forward.UDPSize {
				t.Fatalf("%d bytes over UDP", len(out))
			}
		}
	})
}

// BenchmarkReply measures one question, from its bytes to the bytes of the answer, including the parsing and packing
// that miekg/dns's server does.
func BenchmarkReply(b *testing.B) {
	s := answering(Options{})
	for _, c := range []struct {
		name, ask string
		qtype     uint16
		rcode     int
	}{
		{"A", "dual.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess},
		{"AAAA", "dual.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess},
		{"SRV", "_db._tcp.db.data.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess},
		{"PTR", "1.0.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess},
		{"no such name", "www.example.com.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError},
	} {
		b.Run(c.name, func(b *testing.B) {
			ask := new(dns.Msg).SetQuestion(c.ask, c.qtype)
			ask.SetEdns0(1232, false)
			wire, err := ask.Pack()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				var r dns.Msg
				if err := r.Unpack(wire); err != nil {
					b.Fatal(err)
				}
				m := s.reply(b.Context(), forward.Client{}, &r)
				if _, err := m.Pack(); err != nil || m.Rcode != c.rcode {
					b.Fatal(err, m)
				}
			}
		})
	}
}
