package match

import (
	"strings"
	"testing"
)

// pathRules makes rules for any host from texts like "Prefix /foo" and "Exact /foo".
func pathRules(specs ...string) []Rule {
	var rules []Rule
	for _, s := range specs {
		kind, path, _ := strings.Cut(s, " ")
		rules = append(rules, Rule{Path: path, Exact: kind == "Exact", Source: "default/test"})
	}
	return rules
}

func compile(t testing.TB, rules []Rule) *Table {
	t.Helper()
	table, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// The first rows are the whole table "Examples" under "Path types" of the Ingress documentation; others follow.
func TestPathTypes(t *testing.T) {
	for _, tt := range []struct {
		rules   []string
		request string
		want    int
	}{
		{[]string{"Prefix /"}, "/", 0},
		{[]string{"Prefix /"}, "/anything", 0},
		{[]string{"Prefix /"}, "/any/thing/", 0},
		{[]string{"Exact /foo"}, "/foo", 0},
		{[]string{"Exact /foo"}, "/bar", -1},
		{[]string{"Exact /foo"}, "/foo/", -1},
		{[]string{"Exact /foo/"}, "/foo", -1},
		{[]string{"Prefix /foo"}, "/foo", 0},
		{[]string{"Prefix /foo"}, "/foo/", 0},
		{[]string{"Prefix /foo/"}, "/foo", 0},
		{[]string{"Prefix /foo/"}, "/foo/", 0},
		{[]string{"Prefix /aaa/bb"}, "/aaa/bbb", -1},
		{[]string{"Prefix /aaa/bbb"}, "/aaa/bbb", 0},
		{[]string{"Prefix /aaa/bbb/"}, "/aaa/bbb", 0},
		{[]string{"Prefix /aaa/bbb"}, "/aaa/bbb/", 0},
		{[]string{"Prefix /aaa/bbb"}, "/aaa/bbb/ccc", 0},
		{[]string{"Prefix /aaa/bbb"}, "/aaa/bbbxyz", -1},
		{[]string{"Prefix /", "Prefix /aaa"}, "/aaa/ccc", 1},
		{[]string{"Prefix /", "Prefix /aaa", "Prefix /aaa/bbb"}, "/aaa/bbb", 2},
		{[]string{"Prefix /", "Prefix /aaa", "Prefix /aaa/bbb"}, "/ccc", 0},
		{[]string{"Prefix /aaa"}, "/ccc", -1},
		{[]string{"Prefix /foo", "Exact /foo"}, "/foo", 1},

		{[]string{"Prefix /foo", "Exact /foo"}, "/foo/", 0},
		{[]string{"Prefix /foo/", "Exact /foo"}, "/foo", 1},
		{[]string{"Prefix /foo"}, "/FOO", -1},
		{[]string{"Prefix /foo"}, "/foobar", -1},
		{[]string{"Prefix /foo"}, "//foo", -1},
		{[]string{"Prefix "}, "/x", 0},
		{[]string{"Exact "}, "/", 0},
		{[]string{"Exact "}, "/x", -1},
		{[]string{"Prefix /", "Prefix /a/b/c"}, "/a/b", 0},
		{[]string{"Prefix /x"}, "", -1},
		{[]string{"Prefix /"}, "*", 0}, // OPTIONS *
		{nil, "/", -1},
	} {
		if got := compile(t, pathRules(tt.rules...)).Match("any.example", tt.request); got != tt.want {
			t.Errorf("%q: request %s: got rule %d, want %d", tt.rules, tt.request, got, tt.want)
		}
	}
}

func TestHosts(t *testing.T) {
	rules := []Rule{
		0: {Host: "foo.bar.com", Path: "/exact"},
		1: {Host: "*.bar.com", Path: "/"},
		2: {Path: "/any"},
		3: {Host: "UPPER.example", Path: "/"},
		4: {Host: "*.foo.bar.com", Path: "/"},
		5: {Host: "dot.example.", Path: "/"},
	}
	for _, tt := range []struct {
		host, path string
		want       int
	}{
		{"foo.bar.com", "/exact", 0},
		{"foo.bar.com:8080", "/exact/x", 0},
		{"FOO.Bar.COM", "/exact", 0},
		{"foo.bar.com.", "/exact", 0},
		{"foo.bar.com.:80", "/exact", 0},
		{"foo.bar.com", "/other", 1}, // the exact host has no such path: the next host is tried
		{"baz.bar.com", "/", 1},
		{"BAZ.bar.com:443", "/", 1},
		{"bar.com", "/", -1},
		{".bar.com", "/", -1},
		{"a.baz.bar.com", "/", -1}, // one label only
		{"a.foo.bar.com", "/", 4},
		{"upper.EXAMPLE", "/", 3},
		{"dot.example", "/", 5},
		{"other", "/any/x", 2},
		{"", "/any", 2},
		{"[::1]:80", "/any", 2},
		{"[::1", "/any", 2},
		{"192.0.2.1:80", "/any", 2},
		{strings.Repeat("a", 300) + ".bar.com", "/", -1},
		{strings.Repeat("a", 300) + ".bar.com", "/any", 2},
		{"other", "/", -1},
	} {
		if got := compile(t, rules).Match(tt.host, tt.path); got != tt.want {
			t.Errorf("%s%s: got rule %d, want %d", tt.host, tt.path, got, tt.want)
		}
	}
}

func TestTies(t *testing.T) {
	rules := []Rule{
		{Host: "a.example", Path: "/x", Source: "b/z"},
		{Host: "A.example", Path: "/x/", Source: "a/z"},
		{Host: "a.example", Path: "/x", Source: "a/z"},
		{Host: "a.example", Path: "/x", Exact: true, Source: "c/z"},
	}
	table := compile(t, rules)
	if got := table.Match("a.example", "/x/y"); got != 1 {
		t.Errorf("equal prefixes: got rule %d, want 1: the lesser source, then the earlier rule", got)
	}
	if got := table.Match("a.example", "/x"); got != 3 {
		t.Errorf("Exact of a greater source: got rule %d, want 3", got)
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, r := range []Rule{
		{Host: "*"},
		{Host: "*."},
		{Host: "a.*.example"},
		{Host: "*a.example"},
		{Host: "*.*.example"},
		{Host: ".example"},
		{Host: "*..example"},
		{Host: "a.example:80"},
		{Host: "a.example/x"},
		{Host: strings.Repeat("a", 254)},
		{Path: "x"},
		{Path: "*"},
	} {
		r.Source = "team/shop"
		_, err := Compile([]Rule{{Path: "/"}, r})
		if err == nil {
			t.Errorf("rule %+v was accepted", r)
		} else if !strings.Contains(err.Error(), "team/shop") {
			t.Errorf("rule %+v: error %q does not name its source", r, err)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	table, host, path := benchTable(t)
	if n := testing.AllocsPerRun(100, func() { table.Match(host, path) }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	table, host, path := benchTable(b)
	b.Run("wildcard", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if table.Match(host, path) < 0 {
				b.Fatal("no match")
			}
		}
	})
	b.Run("exact", func(b *testing.B) {
		var hosts, paths []string
		for i := range 1000 {
			hosts = append(hosts, strings.Repeat("x", i*7%20)+string(rune('a'+i*7%26))+".shop.example")
			paths = append(paths, strings.Repeat("/part", i%8+1)+"/item")
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if table.Match(hosts[i], paths[i]) < 0 {
				b.Fatal("no match", hosts[i], paths[i])
			}
			if i++; i == len(hosts) {
				i = 0
			}
		}
	})
	b.Run("none", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if table.Match("shop.example", path) >= 0 {
				b.Fatal("a match")
			}
		}
	})
}

// benchTable returns a Table of 1000 hosts with 8 paths each, and a request that matches by the wildcard after the
// exact host failed.
func benchTable(tb testing.TB) (table *Table, host, path string) {
	var rules []Rule
	for i := range 1000 {
		name := strings.Repeat("x", i%20) + string(rune('a'+i%26)) + ".shop.example"
		for j := range 8 {
			rules = append(rules, Rule{Host: name, Path: strings.Repeat("/part", j+1)})
		}
	}
	rules = append(rules, Rule{Host: "*.shop.example", Path: "/static"})
	return compile(tb, rules), "A.Shop.Example:8443", "/static/css/site.css"
}
