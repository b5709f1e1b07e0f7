package match

import (
	"math/rand/v2"
	"net"
	"strings"
	"testing"
)

// slowMatch is the slow twin of Match: of all rules that match, the best one wins.
func slowMatch(rules []Rule, host, path string) int {
	best := -1
	for i, r := range rules {
		if hostRank(r.Host, host) == 0 || !pathMatches(r, path) {
			continue
		}
		if best < 0 || slowBetter(r, rules[best], host) {
			best = i
		}
	}
	return best
}

// slowBetter reports whether a is better than the earlier rule b. Both match.
func slowBetter(a, b Rule, host string) bool {
	if x, y := hostRank(a.Host, host), hostRank(b.Host, host); x != y {
		return x > y
	}
	if a.Exact != b.Exact {
		return a.Exact
	}
	if x, y := len(elements(a.Path)), len(elements(b.Path)); !a.Exact && x != y {
		return x > y
	}
	return a.Source < b.Source
}

// hostRank returns 0 for no match, 1 for any host, 2 for a wildcard, 3 for an exact host.
func hostRank(rule, host string) int {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(host, ".")
	if rule == "" {
		return 1
	}
	if len(host) > 253 {
		return 0
	}
	if strings.EqualFold(rule, host) {
		return 3
	}
	if suffix, ok := strings.CutPrefix(rule, "*"); ok {
		label, rest, found := strings.Cut(host, ".")
		if found && label != "" && strings.EqualFold(suffix, "."+rest) {
			return 2
		}
	}
	return 0
}

func elements(path string) []string {
	path = strings.TrimSuffix(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path[1:], "/")
}

func pathMatches(r Rule, path string) bool {
	if r.Exact {
		return path == r.Path || r.Path == "" && path == "/"
	}
	want := elements(r.Path)
	if len(want) == 0 {
		return true
	}
	if !strings.HasPrefix(path, "/") {
		return false
	}
	got := strings.Split(path[1:], "/")
	if len(got) < len(want) {
		return false
	}
	for i := range want {
		if got[i] != want[i] {
			return false
		}
	}
	return true
}

// randomRules makes rules of few letters, so that rules often overlap or are equal.
func randomRules(r *rand.Rand) []Rule {
	hosts := []string{"", "a.x", "*.x", "b.a.x", "*.a.x", "x", "A.X"}
	rules := make([]Rule, r.IntN(12))
	for i := range rules {
		rules[i] = Rule{Host: hosts[r.IntN(len(hosts))], Path: randomPath(r), Exact: r.IntN(3) == 0, Source: string(rune('a' + r.IntN(3)))}
	}
	return rules
}

func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString("/" + []string{"", "p", "pp", "q"}[r.IntN(4)])
	}
	if b.Len() == 0 || r.IntN(4) == 0 {
		b.WriteString("/")
	}
	return b.String()
}

func FuzzMatchesSlowTwin(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed, "a.x", "/p/q")
		f.Add(seed, "b.a.X:80", "/pp//q/")
		f.Add(seed, "b.x.", "/")
	}
	f.Fuzz(func(t *testing.T, seed uint64, host, path string) {
		if !ascii(host) {
			return // the twin's EqualFold ignores the case of more letters than DNS does
		}
		r := rand.New(rand.NewPCG(seed, 0))
		rules := randomRules(r)
		table, err := Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{path, randomPath(r), randomPath(r)} {
			for _, h := range []string{host, "a.x", "c.a.x"} {
				if !plainHost(h) {
					continue
				}
				if got, want := table.Match(h, p), slowMatch(rules, h, p); got != want {
					t.Errorf("%+v\n%q %q: got rule %d, want %d", rules, h, p, got, want)
				}
			}
		}
	})
}

// plainHost reports whether the two host parsers must agree on h. The other hosts are refused by net/http.
func plainHost(h string) bool {
	return strings.Count(h, ":") <= 1 && !strings.ContainsAny(h, "[]*")
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
