package dns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/dns/forward"
	"tapestry.dev/tapestry/test/await"
)

// raw sends a question over UDP. It returns the answer as a message and as bytes.
func raw(t *testing.T, addr netip.AddrPort, m *dns.Msg) (*dns.Msg, []byte) {
	t.Helper()
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(await.Patience))
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(q); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	got := new(dns.Msg)
	if err := got.Unpack(b[:n]); err != nil {
		t.Fatal(err)
	}
	return got, b[:n]
}

// TestUnknownVersionOfEDNS expects BADVERS with the question, an OPT record of version 0 and nothing else (RFC 6891
// 6.1.3), for any options. A forwarder in between cannot match an answer without its question (coredns/coredns#5785).
func TestUnknownVersionOfEDNS(t *testing.T) {
	addr := start(t, answering(Options{}))
	for _, name := range []string{"kubernetes.default.svc.cluster.local.", "example.com.", "cluster.local."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		opt := m.SetEdns0(4096, true).IsEdns0()
		opt.SetVersion(100)
		opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: 100, Data: []byte("x")})
		got, _ := raw(t, addr, m)
		o := got.IsEdns0()
		if got.Rcode != dns.RcodeBadVers || o == nil || o.Version() != 0 || len(got.Question) != 1 || got.Question[0] != m.Question[0] ||
			len(got.Answer)+len(got.Ns) != 0 || len(got.Extra) != 1 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTwoOPT: a question with two OPT records is answered by FORMERR (RFC 6891 6.1.1). It was answered as if there was
// one.
func TestTwoOPT(t *testing.T) {
	addr := start(t, answering(Options{}))
	for version, name := range []string{"kubernetes.default.svc.cluster.local.", "example.com."} { // an unknown version, too
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.SetEdns0(1232, false).IsEdns0().SetVersion(uint8(version))
		m.Extra = append(m.Extra, m.Extra[0])
		if got, _ := raw(t, addr, m); got.Rcode != dns.RcodeFormatError || len(got.Answer) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestOnlyAdditionalIsCut: an answer whose additional records do not all fit is complete, and TC says nothing else. No
// part of a set of records is sent (RFC 2181 9). TC was set.
func TestOnlyAdditionalIsCut(t *testing.T) {
	svc := &Service{Namespace: "d", Name: "some", Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}}}
	for i := range 200 { // ten endpoints have one hostname
		svc.Endpoints = append(svc.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Hostname: fmt.Sprintf("host-%d", i%10),
			Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}}})
	}
	s := New(Options{})
	s.Set(Config{Services: []*Service{svc}})
	addr := start(t, s)
	for _, edns := range []bool{false, true} {
		m := new(dns.Msg).SetQuestion("_http._tcp.some.d.svc.cluster.local.", dns.TypeSRV)
		size, answers := 512, 0
		if edns {
			size, answers = forward.UDPSize, 10
			m.SetEdns0(forward.UDPSize, false)
		}
		got, bytes := raw(t, addr, m)
		if len(bytes) > size || got.Truncated != (answers == 0) || answers > 0 && len(got.Answer) != answers || (got.IsEdns0() != nil) != edns {
			t.Errorf("EDNS %v: %d bytes, %d answers, truncated %v", edns, len(bytes), len(got.Answer), got.Truncated)
		}
		sets := map[string]int{}
		for _, rr := range got.Extra {
			if rr.Header().Rrtype == dns.TypeA {
				sets[rr.Header().Name]++
			}
		}
		for name, n := range sets {
			if n != 20 {
				t.Errorf("EDNS %v: %d of 20 addresses of %s", edns, n, name)
			}
		}
		if edns && len(sets) == 0 {
			t.Error("the test has no additional records")
		}
	}
}

// TestCompressedBeforeTruncated checks that an answer that fits when names are compressed is complete, also for a
// client without EDNS. An answer that does not fit is cut at 512 bytes and has TC set (RFC 1035 4.2.1;
// coredns/coredns#2224).
func TestCompressedBeforeTruncated(t *testing.T) {
	s := New(Options{})
	var list []*Service
	for _, n := range []int{27, 28} {
		svc := &Service{Namespace: "namespace-of-some-length", Name: fmt.Sprintf("headless-%d", n)}
		for i := range n {
			svc.Endpoints = append(svc.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Ports: []Port{{Protocol: packet.TCP, Port: 80}}})
		}
		list = append(list, svc)
	}
	s.Set(Config{Services: list})
	addr := start(t, s)
	for n, truncated := range map[int]bool{27: false, 28: true} {
		m := new(dns.Msg).SetQuestion(fmt.Sprintf("headless-%d.namespace-of-some-length.svc.cluster.local.", n), dns.TypeA)
		got, bytes := raw(t, addr, m)
		// The header, the question of 60 bytes, and 16 bytes an answer.
		if got.Truncated != truncated || !truncated && len(got.Answer) != n || len(bytes) > 512 || got.IsEdns0() != nil {
			t.Errorf("%d addresses: %d bytes, %d answers, truncated %v, EDNS %v", n, len(bytes), len(got.Answer), got.Truncated, got.IsEdns0())
		}
	}
}

// TestClientWithoutEDNS checks that a client without EDNS gets no OPT record (RFC 6891 7) and at most 512 bytes. This
// also holds if the server itself uses EDNS to ask an upstream for the target of an ExternalName
// (coredns/coredns#5366).
func TestClientWithoutEDNS(t *testing.T) {
	up, _ := upstreamServer(t)
	s := New(Options{Upstreams: fixed(up)})
	s.Set(Config{Services: []*Service{{Namespace: "d", Name: "big", ExternalName: "big.example.com"}, {Namespace: "d", Name: "www", ExternalName: "www.example.com."}}})
	addr := start(t, s)
	for _, tt := range []struct {
		name      string
		qtype     uint16
		truncated bool
	}{
		{"big.d.svc.cluster.local.", dns.TypeTXT, true},
		{"www.d.svc.cluster.local.", dns.TypeA, false},
		{"big.example.com.", dns.TypeTXT, true},
		{"www.example.com.", dns.TypeA, false},
		{"none.example.com.", dns.TypeA, false},
	} {
		got, bytes := raw(t, addr, new(dns.Msg).SetQuestion(tt.name, tt.qtype))
		if got.IsEdns0() != nil || len(got.Extra) != 0 || len(bytes) > 512 || got.Truncated != tt.truncated {
			t.Errorf("%s: %d bytes, truncated %v, additional %v", tt.name, len(bytes), got.Truncated, got.Extra)
		}
	}
	if m := ask(t, addr, "tcp", "big.d.svc.cluster.local.", dns.TypeTXT); m.Truncated || len(m.Answer) != 61 {
		t.Errorf("over TCP: %d answers, truncated %v", len(m.Answer), m.Truncated)
	}
}

// TestUpstreamIgnoresSizes: an upstream that sends 1,794 bytes over UDP whatever it is asked for. The client gets TC,
// and the whole over TCP, and the upstream has not failed (coredns/coredns#5998). It was SERVFAIL.
func TestUpstreamIgnoresSizes(t *testing.T) {
	pc, l, up := listen(t)
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		for range 7 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header(r.Question[0].Name, dns.TypeTXT), Txt: []string{strings.Repeat("x", 250)}})
		}
		_ = w.WriteMsg(m)
	})
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started, done := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	}
	s := answering(Options{Upstreams: fixed(up)})
	addr := start(t, s)
	for edns, size := range map[uint16]int{0: 512, 1232: 1232, 4096: 1232} {
		m := new(dns.Msg).SetQuestion("a.b.", dns.TypeTXT)
		if edns > 0 {
			m.SetEdns0(edns, false)
		}
		got, bytes := raw(t, addr, m)
		if got.Rcode != dns.RcodeSuccess || !got.Truncated || len(bytes) > size {
			t.Errorf("size %d: %s, %d bytes, truncated %v", edns, dns.RcodeToString[got.Rcode], len(bytes), got.Truncated)
		}
	}
	if m := ask(t, addr, "tcp", "a.b.", dns.TypeTXT); m.Truncated || len(m.Answer) != 7 {
		t.Errorf("over TCP: %d answers, truncated %v", len(m.Answer), m.Truncated)
	}
	if n := s.Counters().Get("tapestry_dns_upstreams_working"); n != 1 {
		t.Error("the upstream is thought to fail")
	}
}

// TestNoSuchNameOfAnyType checks that the existence of a name does not depend on the type asked for (RFC 8020).
// Otherwise a client would end its search too early (coredns/coredns#5736), or give up a name that exists with other
// types.
func TestNoSuchNameOfAnyType(t *testing.T) {
	s := answering(Options{})
	for name, want := range map[string]int{
		"none.default.svc.cluster.local.":                  dns.RcodeNameError,
		"svc.none.svc.cluster.local.":                      dns.RcodeNameError,
		"none.cluster.local.":                              dns.RcodeNameError,
		"kubernetes.default.svc.cluster.local.":            dns.RcodeSuccess,
		"default.svc.cluster.local.":                       dns.RcodeSuccess,
		"_tcp.dual.default.svc.cluster.local.":             dns.RcodeSuccess,
		"_http._tcp.dual.default.svc.cluster.local.":       dns.RcodeSuccess,
		"db-0.db.data.svc.cluster.local.":                  dns.RcodeSuccess,
		"_db._tcp.db.data.svc.cluster.local.":              dns.RcodeSuccess,
		"10-0-9-9.lone.pod.cluster.local.":                 dns.RcodeSuccess,
		"_tcp.db.data.svc.cluster.local.":                  dns.RcodeSuccess,
		"_db._tcp.down.data.svc.cluster.local.":            dns.RcodeNameError,
		"_none._tcp.kubernetes.default.svc.cluster.local.": dns.RcodeNameError,
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeSRV, dns.TypeMX, dns.TypePTR, dns.TypeHTTPS, dns.TypeSOA, dns.TypeNS, dns.TypeCNAME} {
			if m := s.reply(t.Context(), forward.Client{}, new(dns.Msg).SetQuestion(name, qtype)); m.Rcode != want {
				t.Errorf("%s %s: %s, want %s", name, dns.TypeToString[qtype], dns.RcodeToString[m.Rcode], dns.RcodeToString[want])
			}
		}
	}
}
