package hubble

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// sample is an event that has something to say in every field.
func sample() *Flow {
	return &Flow{
		Node: "n1", Verdict: Dropped, Reason: PolicyDenied, Direction: Egress, Protocol: TCP, Flags: SYN | ACK, Type: Drop, Point: int32(PolicyDenied), Reply: Answer,
		Source: End{
			Addr: netip.MustParseAddr("10.244.1.10"), Port: 1000, Namespace: "shop", Pod: "web-1", Workload: Workload{"Deployment", "web"},
			Labels: []string{"k8s:app=web", "k8s:tier=front"}, Names: []string{"web.example.com"},
		},
		Destination: End{
			Addr: netip.MustParseAddr("fd00::11"), Port: 8080, Namespace: "db", Pod: "pg-0", Workload: Workload{"StatefulSet", "pg"},
			Labels: []string{"k8s:app=pg"}, Service: Name{"db", "pg"}, Names: []string{"pg.db.svc.cluster.local"},
		},
		Translated: netip.MustParseAddr("192.0.2.1"),
		DNS:        &DNS{Query: "example.com."},
		HTTP:       &HTTP{Code: 404, Method: "GET", URL: "http://web/a?b"},
	}
}

func TestFilters(t *testing.T) {
	for n, c := range map[protowire.Number]struct{ right, wrong []string }{
		1:  {[]string{"10.244.1.10", "10.244.0.0/16"}, []string{"10.244.1.11", "fd00::/8"}},
		2:  {[]string{"shop/web-1", "shop/we", "shop/", "/web"}, []string{"web-1", "db/", "shop/x", "shop/web-12"}},
		3:  {[]string{"fd00::11", "fd00::/64"}, []string{"fd00::12", "0.0.0.0/0"}},
		4:  {[]string{"db/pg-0"}, []string{"shop/pg-0"}},
		7:  {[]string{"web.example.com", "*.example.com", "WEB.example.com."}, []string{"example.com", "web.example"}},
		8:  {[]string{"pg.*"}, []string{"web.*"}},
		9:  {[]string{"404", "40+", "4+"}, []string{"200", "5+"}},
		10: {[]string{"app=web", "k8s:app=web,tier", "app in (web, x)", "app notin (x)", "!other", "app!=x", "any:app==web"}, []string{"app=x", "!app", "other", "app notin (web)", "reserved:app=web"}},
		11: {[]string{"app=pg"}, []string{"app=web"}},
		12: {[]string{"tcp", "TCP", "http", "dns"}, []string{"udp", "icmp", "sctp"}},
		13: {[]string{"1000"}, []string{"8080"}},
		14: {[]string{"8080"}, []string{"1000"}},
		17: {[]string{"db/pg"}, []string{"pg", "shop/pg"}},
		18: {[]string{"^example", "com"}, []string{"^com"}},
		21: {[]string{"GET", "get"}, []string{"POST"}},
		22: {[]string{"^/a$"}, []string{"b"}},
		24: {[]string{"n1", "n*", "default/n1"}, []string{"n2"}},
		31: {[]string{"web/a"}, []string{"^web"}},
		34: {[]string{"192.0.2.1"}, []string{"10.244.1.10"}},
	} {
		for i, text := range append(c.right, c.wrong...) {
			var m message
			m.text(n, text)
			is, err := compile(m)
			if err != nil {
				t.Errorf("field %d, %q: %v", n, text, err)
			} else if want := i < len(c.right); is(sample()) != want {
				t.Errorf("field %d, %q: %v, want %v", n, text, !want, want)
			}
		}
	}
	for n, c := range map[protowire.Number]struct{ right, wrong uint64 }{
		5: {uint64(Dropped), uint64(Forwarded)}, 15: {1, 0}, 19: {uint64(sample().Source.identity()), 2}, 20: {uint64(sample().Destination.identity()), 1},
		25: {1, 2}, 30: {uint64(Egress), uint64(Ingress)}, 33: {uint64(PolicyDenied), uint64(Unroutable)},
	} {
		for _, v := range []uint64{c.right, c.wrong} {
			m := message(protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v))
			if is, err := compile(m); err != nil || is(sample()) != (v == c.right) {
				t.Errorf("field %d, %d: %v", n, v, err)
			}
		}
	}
	inner := func(n protowire.Number, fill func(*message)) (is bool) {
		var m message
		m.inside(n, fill)
		f, err := compile(m)
		if err != nil {
			t.Fatal(err)
		}
		return f(sample())
	}
	for name, c := range map[string]struct{ got, want bool }{
		"any type":      {inner(6, func(*message) {}), true},
		"drops":         {inner(6, func(m *message) { m.number(1, uint64(Drop)) }), true},
		"traces":        {inner(6, func(m *message) { m.number(1, uint64(Trace)) }), false},
		"other drops":   {inner(6, func(m *message) { m.number(1, uint64(Drop)); m.number(2, 1); m.number(3, 132) }), false},
		"SYN":           {inner(23, func(m *message) { m.number(2, 1) }), true},
		"FIN":           {inner(23, func(m *message) { m.number(1, 1); m.number(2, 1) }), false},
		"workload":      {inner(26, func(m *message) { m.text(1, "web") }), true},
		"other kind":    {inner(26, func(m *message) { m.text(1, "web"); m.text(2, "DaemonSet") }), false},
		"kind":          {inner(27, func(m *message) { m.text(2, "StatefulSet") }), true},
		"other service": {inner(16, func(m *message) { *m = append(*m, "db/pg"...) }), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", name, c.got)
		}
	}
}

func TestBadFilters(t *testing.T) {
	for n, text := range map[protowire.Number]string{
		1: "10.0.0.0/33", 3: "", 7: " ", 9: "4x", 10: "a in b", 12: "quic", 13: "70000", 18: "(", 22: "[", 36: "a=b", 999: "",
	} {
		var m message
		*m.raw() = protowire.AppendString(protowire.AppendTag(m, n, protowire.BytesType), text)
		if _, err := compile(m); err == nil {
			t.Errorf("field %d, %q is accepted", n, text)
		}
	}
}

func (m *message) raw() *[]byte { return (*[]byte)(m) }

// Identities are the same for equal labels, and none is one that has a meaning of its own.
func TestIdentity(t *testing.T) {
	a, b := sample().Source, sample().Source
	if b.Pod = "web-2"; a.identity() != b.identity() || a.identity() < firstIdentity || a.identity() >= 1<<24 {
		t.Errorf("%d and %d", a.identity(), b.identity())
	}
	if b.Labels = b.Labels[:1]; a.identity() == b.identity() {
		t.Error("other labels, and the same identity")
	}
	if e := (End{Labels: []string{"reserved:world"}}); e.identity() != worldIdentity {
		t.Errorf("the world is %d", e.identity())
	}
}

// Whatever a client sends, it is read or refused.
func FuzzParse(f *testing.F) {
	for _, fill := range []func(*message){
		func(m *message) { m.number(1, 20); m.number(3, 1); m.text(10, "mask") },
		func(m *message) { m.inside(6, func(m *message) { m.text(2, "shop/web"); m.text(10, "a in (b,c)") }) },
		func(m *message) { m.inside(5, func(m *message) { m.inside(23, func(m *message) { m.number(2, 1) }) }) },
	} {
		var m message
		fill(&m)
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := parse(b); err == nil {
			q.admits(sample())
			q.admits(&Flow{})
		}
	})
}
