package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/dns/forward"
)

func endpointAt(addr, hostname string, port uint16) Endpoint {
	return Endpoint{Addr: netip.MustParseAddr(addr), Hostname: hostname, Ports: []Port{{Name: "db", Protocol: packet.TCP, Port: port}}}
}

func testConfig() Config {
	db := []Port{{Name: "db", Protocol: packet.TCP, Port: 5432}}
	return Config{
		Addrs: addresstest.Addrs("10.96.0.10", "fd96::a"),
		Services: []*Service{
			{Namespace: "default", Name: "kubernetes", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: []Port{{Name: "https", Protocol: packet.TCP, Port: 443}}},
			{Namespace: "default", Name: "dual", ClusterIPs: addresstest.Addrs("10.96.0.2", "fd96::2"),
				Ports: []Port{{Name: "http", Protocol: packet.TCP, Port: 80}, {Name: "http", Protocol: packet.UDP, Port: 81}, {Protocol: packet.TCP, Port: 82}}},
			{Namespace: "data", Name: "db", Ports: db, Endpoints: []Endpoint{
				endpointAt("10.0.0.1", "db-0", 5432), endpointAt("fd00::1", "db-0", 5432), endpointAt("10.0.1.2", "", 5433)}},
			{Namespace: "data", Name: "down", Ports: db},
			{Namespace: "data", Name: "early", Ports: db, Endpoints: []Endpoint{endpointAt("10.0.2.2", "e", 1)}},
			{Namespace: "data", Name: "named", ClusterIPs: addresstest.Addrs("10.96.0.3"), Ports: db, Endpoints: []Endpoint{endpointAt("10.0.3.1", "boss", 5432)}},
			{Namespace: "default", Name: "ext", ExternalName: "www.example.com"},
			{Namespace: "default", Name: "alias", ExternalName: "dual.default.svc.cluster.local"},
			{Namespace: "default", Name: "circle", ExternalName: "circle.default.svc.cluster.local."},
		},
		Pods: []Pod{
			{Namespace: "data", Addrs: addresstest.Addrs("10.0.0.1", "fd00::1")},
			{Namespace: "lone", Addrs: addresstest.Addrs("10.0.9.9", "fd00::9")},
			{Namespace: "lone", Addrs: addresstest.Addrs("192.0.2.1"), HostNetwork: true},
		},
	}
}

// answering returns a Server with testConfig. The endpoints of data/named are 10.0.3.1 and 10.0.3.2.
func answering(o Options) *Server {
	o.Serves = func(namespace, name string, a netip.Addr) bool {
		return namespace == "data" && name == "named" && slices.Contains(addresstest.Addrs("10.0.3.1", "10.0.3.2"), a)
	}
	s := New(o)
	s.Set(testConfig())
	return s
}

// text returns the records as sorted lines without header details: "name TYPE data".
func text(rrs []dns.RR) string {
	var out []string
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(append([]string{f[0]}, f[3:]...), " "))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func lines(ss ...string) string { return strings.Join(ss, "\n") }

// TestDashed: every address makes a label that is allowed, and the label leads back to the address.
func TestDashed(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.1.2": "10-0-1-2", "fd00::1": "fd00--1", "2001:db8:3333:4444:5555:6666::": "2001-db8-3333-4444-5555-6666--0",
		"::1": "0--1", "::": "0--0", "1:0:0:2::": "1-0-0-2--0", "::ffff:10.0.0.1": "10-0-0-1", "::10.0.0.1": "0--a00-1",
	} {
		a := netip.MustParseAddr(addr)
		got := dashed(a)
		if back, ok := undashed(got); got != want || !ok || back != a.Unmap() {
			t.Errorf("%s: %s, and back %v, want %s", addr, got, back, want)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := answering(Options{})
	tests := []struct {
		name  string
		qtype uint16
		rcode int
		want  string
		extra string
	}{
		{name: "kubernetes.default.svc.cluster.local.", qtype: dns.TypeA, want: "kubernetes.default.svc.cluster.local. A 10.96.0.1"},
		{name: "kubernetes.default.svc.cluster.local.", qtype: dns.TypeAAAA},
		{name: "KuberNetes.Default.SVC.Cluster.Local.", qtype: dns.TypeA, want: "KuberNetes.Default.SVC.Cluster.Local. A 10.96.0.1"},
		{name: "dual.default.svc.cluster.local.", qtype: dns.TypeA, want: "dual.default.svc.cluster.local. A 10.96.0.2"},
		{name: "dual.default.svc.cluster.local.", qtype: dns.TypeAAAA, want: "dual.default.svc.cluster.local. AAAA fd96::2"},
		{name: "dual.default.svc.cluster.local.", qtype: dns.TypeMX},
		{name: "dual.default.svc.cluster.local.", qtype: dns.TypeSRV},
		{name: "dual.default.svc.cluster.local.", qtype: dns.TypeANY, want: `dual.default.svc.cluster.local. HINFO "RFC8482" ""`},
		{name: "none.default.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "dual.none.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "a.b.dual.default.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		// Names without records of their own, between the zone and the Services.
		{name: "cluster.local.", qtype: dns.TypeA},
		{name: "svc.cluster.local.", qtype: dns.TypeA},
		{name: "default.svc.cluster.local.", qtype: dns.TypeA},
		{name: "none.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "other.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "pod.cluster.local.", qtype: dns.TypeA},
		{name: "lone.pod.cluster.local.", qtype: dns.TypeA},
		{name: "dns.cluster.local.", qtype: dns.TypeA},
		// Version, SOA, NS.
		{name: "dns-version.cluster.local.", qtype: dns.TypeTXT, want: `dns-version.cluster.local. TXT "1.1.0"`},
		{name: "dns-version.cluster.local.", qtype: dns.TypeA},
		{name: "x.dns-version.cluster.local.", qtype: dns.TypeTXT, rcode: dns.RcodeNameError},
		{name: "cluster.local.", qtype: dns.TypeSOA, want: "cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
		{name: "cluster.local.", qtype: dns.TypeNS, want: "cluster.local. NS ns.dns.cluster.local.",
			extra: lines("ns.dns.cluster.local. A 10.96.0.10", "ns.dns.cluster.local. AAAA fd96::a")},
		{name: "ns.dns.cluster.local.", qtype: dns.TypeA, want: "ns.dns.cluster.local. A 10.96.0.10"},
		// Headless.
		{name: "db.data.svc.cluster.local.", qtype: dns.TypeA, want: lines("db.data.svc.cluster.local. A 10.0.0.1", "db.data.svc.cluster.local. A 10.0.1.2")},
		{name: "db.data.svc.cluster.local.", qtype: dns.TypeAAAA, want: "db.data.svc.cluster.local. AAAA fd00::1"},
		{name: "down.data.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "early.data.svc.cluster.local.", qtype: dns.TypeA, want: "early.data.svc.cluster.local. A 10.0.2.2"},
		{name: "early.data.svc.cluster.local.", qtype: dns.TypeAAAA},
		{name: "db-0.db.data.svc.cluster.local.", qtype: dns.TypeA, want: "db-0.db.data.svc.cluster.local. A 10.0.0.1"},
		{name: "db-0.db.data.svc.cluster.local.", qtype: dns.TypeAAAA, want: "db-0.db.data.svc.cluster.local. AAAA fd00::1"},
		{name: "10-0-1-2.db.data.svc.cluster.local.", qtype: dns.TypeA, want: "10-0-1-2.db.data.svc.cluster.local. A 10.0.1.2"},
		{name: "10-0-1-2.db.data.svc.cluster.local.", qtype: dns.TypeAAAA},
		{name: "db-2.db.data.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "boss.named.data.svc.cluster.local.", qtype: dns.TypeA, want: "boss.named.data.svc.cluster.local. A 10.0.3.1"},
		{name: "10-0-3-2.named.data.svc.cluster.local.", qtype: dns.TypeA, want: "10-0-3-2.named.data.svc.cluster.local. A 10.0.3.2"},
		{name: "10-0-3-2.named.data.svc.cluster.local.", qtype: dns.TypeAAAA},
		// It has a hostname.
		{name: "10-0-3-1.named.data.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "10-0-3-3.named.data.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "10-0-3-2.dual.default.svc.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		// SRV.
		{name: "_http._tcp.dual.default.svc.cluster.local.", qtype: dns.TypeSRV,
			want:  "_http._tcp.dual.default.svc.cluster.local. SRV 0 100 80 dual.default.svc.cluster.local.",
			extra: lines("dual.default.svc.cluster.local. A 10.96.0.2", "dual.default.svc.cluster.local. AAAA fd96::2")},
		{name: "_http._udp.dual.default.svc.cluster.local.", qtype: dns.TypeSRV,
			want:  "_http._udp.dual.default.svc.cluster.local. SRV 0 100 81 dual.default.svc.cluster.local.",
			extra: lines("dual.default.svc.cluster.local. A 10.96.0.2", "dual.default.svc.cluster.local. AAAA fd96::2")},
		{name: "_http._tcp.dual.default.svc.cluster.local.", qtype: dns.TypeA},
		{name: "_tcp.dual.default.svc.cluster.local.", qtype: dns.TypeSRV},
		{name: "_sctp.dual.default.svc.cluster.local.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "_none._tcp.dual.default.svc.cluster.local.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "_._tcp.dual.default.svc.cluster.local.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "_db._tcp.db.data.svc.cluster.local.", qtype: dns.TypeSRV,
			want: lines("_db._tcp.db.data.svc.cluster.local. SRV 0 50 5432 db-0.db.data.svc.cluster.local.",
				"_db._tcp.db.data.svc.cluster.local. SRV 0 50 5433 10-0-1-2.db.data.svc.cluster.local."),
			extra: lines("10-0-1-2.db.data.svc.cluster.local. A 10.0.1.2", "db-0.db.data.svc.cluster.local. A 10.0.0.1", "db-0.db.data.svc.cluster.local. AAAA fd00::1")},
		{name: "_db._tcp.down.data.svc.cluster.local.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		// ExternalName.
		{name: "ext.default.svc.cluster.local.", qtype: dns.TypeCNAME, want: "ext.default.svc.cluster.local. CNAME www.example.com."},
		{name: "alias.default.svc.cluster.local.", qtype: dns.TypeA,
			want: lines("alias.default.svc.cluster.local. CNAME dual.default.svc.cluster.local.", "dual.default.svc.cluster.local. A 10.96.0.2")},
		// Pods.
		{name: "10-0-9-9.lone.pod.cluster.local.", qtype: dns.TypeA, want: "10-0-9-9.lone.pod.cluster.local. A 10.0.9.9"},
		{name: "10-0-9-9.lone.pod.cluster.local.", qtype: dns.TypeAAAA},
		{name: "fd00--9.lone.pod.cluster.local.", qtype: dns.TypeAAAA, want: "fd00--9.lone.pod.cluster.local. AAAA fd00::9"},
		{name: "10-0-9-9.data.pod.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "p.lone.pod.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "none.pod.cluster.local.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		// Reverse.
		{name: "2.0.96.10.in-addr.arpa.", qtype: dns.TypePTR, want: "2.0.96.10.in-addr.arpa. PTR dual.default.svc.cluster.local."},
		{name: "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa.", qtype: dns.TypePTR,
			want: "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa. PTR dual.default.svc.cluster.local."},
		{name: "1.0.0.10.in-addr.arpa.", qtype: dns.TypePTR, want: "1.0.0.10.in-addr.arpa. PTR db-0.db.data.svc.cluster.local."},
		{name: "2.1.0.10.in-addr.arpa.", qtype: dns.TypePTR, want: "2.1.0.10.in-addr.arpa. PTR 10-0-1-2.db.data.svc.cluster.local."},
		{name: "1.3.0.10.in-addr.arpa.", qtype: dns.TypePTR, want: "1.3.0.10.in-addr.arpa. PTR boss.named.data.svc.cluster.local."},
		{name: "9.9.0.10.in-addr.arpa.", qtype: dns.TypePTR, want: "9.9.0.10.in-addr.arpa. PTR 10-0-9-9.lone.pod.cluster.local."},
		{name: "9.9.0.10.in-addr.arpa.", qtype: dns.TypeTXT},
		{name: "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.D.F.IP6.arpa.", qtype: dns.TypeTXT},
		{name: "192-0-2-1.lone.pod.cluster.local.", qtype: dns.TypeA, want: "192-0-2-1.lone.pod.cluster.local. A 192.0.2.1"},
	}
	for _, tt := range tests {
		t.Run(dns.TypeToString[tt.qtype]+" "+tt.name, func(t *testing.T) {
			r := new(dns.Msg)
			r.SetQuestion(tt.name, tt.qtype)
			m := s.reply(t.Context(), forward.Client{TCP: true}, r)
			if m.Rcode != tt.rcode {
				t.Errorf("code %s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.rcode])
			}
			if got := text(m.Answer); got != tt.want {
				t.Errorf("answer\n%s\nwant\n%s", got, tt.want)
			}
			if got := text(m.Extra); got != tt.extra {
				t.Errorf("additional\n%s\nwant\n%s", got, tt.extra)
			}
			if !m.Authoritative || !m.Response || m.Id != r.Id || !m.RecursionAvailable {
				t.Errorf("header %v", m.MsgHdr)
			}
			negative := len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA
			if negative != (tt.want == "") {
				t.Errorf("authority %v", m.Ns)
			}
			if negative && !dns.IsSubDomain(m.Ns[0].Header().Name, dns.CanonicalName(tt.name)) {
				t.Errorf("the SOA record of %s is of another zone", m.Ns[0].Header().Name)
			}
			for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
				if rr.Header().Ttl != ttl {
					t.Errorf("TTL of %v", rr)
				}
			}
		})
	}
}

func TestReverseAddr(t *testing.T) {
	for _, name := range []string{
		"in-addr.arpa.", "10.in-addr.arpa.", "1.2.3.10.x.in-addr.arpa.", "1.2.3.010.in-addr.arpa.", "256.2.3.10.in-addr.arpa.",
		"ip6.arpa.", "1.ip6.arpa.", strings.Repeat("g.", 32) + "ip6.arpa.", strings.Repeat("1:", 32) + "ip6.arpa.",
	} {
		if a, ok := reverseAddr(name); ok {
			t.Errorf("%s is %v", name, a)
		}
	}
	for _, s := range []string{"10.1.2.3", "fd00::12:ff", "2001:db8:1:2:3:4:5:6"} {
		a := netip.MustParseAddr(s)
		name, err := dns.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := reverseAddr(name); !ok || got != a {
			t.Errorf("%s is %v", name, got)
		}
	}
}

// TestPodsByForm: as a choice, every address has a pod name in every namespace, also where no pod is known, as pods of
// other nodes are not. By default such names do not exist.
func TestPodsByForm(t *testing.T) {
	byForm, byDefault := New(Options{Choices: Choices{PodsByForm: true}}), New(Options{})
	for _, s := range []*Server{byForm, byDefault} {
		s.Set(Config{})
	}
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string // "" for no record, "-" for no such name
	}{
		{"10-1-2-3.any.pod.cluster.local.", dns.TypeA, "10-1-2-3.any.pod.cluster.local. A 10.1.2.3"},
		{"10-1-2-3.any.pod.cluster.local.", dns.TypeAAAA, ""},
		{"FD00--7.any.pod.cluster.local.", dns.TypeAAAA, "FD00--7.any.pod.cluster.local. AAAA fd00::7"},
		{"fd00--7.any.pod.cluster.local.", dns.TypeA, ""},
		{"--ffff-10.1.2.3.any.pod.cluster.local.", dns.TypeA, "-"},
		{"any.pod.cluster.local.", dns.TypeA, ""}, // names below it exist (RFC 8020)
		{"web-0.any.pod.cluster.local.", dns.TypeA, "-"},
		{"10-1-2.any.pod.cluster.local.", dns.TypeA, "-"},
		{"10-1-2-256.any.pod.cluster.local.", dns.TypeA, "-"},
		{"fe80--1%eth0.any.pod.cluster.local.", dns.TypeAAAA, "-"},
		{"x.10-1-2-3.any.pod.cluster.local.", dns.TypeA, "-"},
		{"10-1-2-3.any.svc.cluster.local.", dns.TypeA, "-"},
	} {
		r := new(dns.Msg).SetQuestion(tt.name, tt.qtype)
		m := byForm.reply(t.Context(), forward.Client{}, r)
		got := text(m.Answer)
		if m.Rcode == dns.RcodeNameError {
			got = "-"
		}
		if got != tt.want {
			t.Errorf("%s %s: %q, want %q", dns.TypeToString[tt.qtype], tt.name, got, tt.want)
		}
		if m := byDefault.reply(t.Context(), forward.Client{}, r); m.Rcode != dns.RcodeNameError {
			t.Errorf("by default, %s exists: %v", tt.name, m)
		}
	}
}
