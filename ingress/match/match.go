// Package match finds the route of an HTTP request by the precedence of networking.k8s.io/v1 Ingress. It is pure:
// Compile makes an immutable Table of rules, and Match depends on host and path alone, and does not allocate.
//
// The order is that of the Ingress documentation ("Path types", "Multiple matches", "Hostname wildcards"): an exact
// host comes before a wildcard host, and a wildcard host before a rule for any host. Within a host an Exact path comes
// before prefixes, and the longest prefix, in whole path elements, wins. When no path of a host matches, the next less
// specific host is tried, since a rule matches only when both its host and its path do.
package match

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tapestry.dev/tapestry/ingress/target"
)

// maxHost is the length of the longest DNS name as text (RFC 1035 section 2.3.4). A longer host matches no rule that
// has a host.
const maxHost = 253

// Rule is one host and path. Its index in the slice given to Compile identifies it.
type Rule struct {
	// Host is a name; or "*." and a name, for hosts with exactly one label more; or "" for any host.
	Host string
	// Path begins with "/", and may have percent escapes; "" is "/".
	Path string
	// Exact compares the whole path. Otherwise Path is a prefix, element by element, and a trailing slash has no
	// meaning.
	Exact bool
	// Source decides between equal rules: the one with the lesser Source wins, and with equal Sources the earlier rule.
	Source string
}

// Table is a compiled set of rules. It is immutable and safe for concurrent use.
type Table struct {
	exact    map[string]*paths // "a.example.com"
	wildcard map[string]*paths // "*.example.com" is kept as ".example.com"
	any      *paths
}

// paths are the rules of one host.
type paths struct {
	exact  map[string]int
	prefix map[string]int // without trailing slash: "/" is ""
	// lengths are those of the keys of prefix, longest first. A request costs one lookup per length, however many
	// slashes its path has. With one lookup per slash, a hostile path would cost the square of its length.
	lengths []int
}

// Compile checks the rules and builds their Table. The error names the first bad rule, and what it should be.
func Compile(rules []Rule) (*Table, error) {
	for i := range rules {
		if err := rules[i].check(); err != nil {
			return nil, err
		}
	}
	order := make([]int, len(rules))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rules[a].Source, rules[b].Source) })

	t := &Table{exact: map[string]*paths{}, wildcard: map[string]*paths{}, any: newPaths()}
	for _, i := range order {
		t.host(rules[i].Host).add(rules[i], i)
	}
	for _, m := range []map[string]*paths{t.exact, t.wildcard, {"": t.any}} {
		for _, p := range m {
			p.sortLengths()
		}
	}
	return t, nil
}

func (r *Rule) check() error {
	name := strings.TrimPrefix(r.Host, "*.")
	switch {
	case strings.Contains(name, "*"):
		return fmt.Errorf("rule of %s: host %q: a wildcard may only be the whole first label, as in *.example.com", r.Source, r.Host)
	case r.Host != "" && name == "", strings.HasPrefix(name, "."), strings.ContainsAny(name, "/ :[]"):
		return fmt.Errorf("rule of %s: host %q: expected a DNS name without port", r.Source, r.Host)
	case len(r.Host) > maxHost:
		return fmt.Errorf("rule of %s: host %.20q...: longer than %d characters", r.Source, r.Host, maxHost)
	case r.Path != "" && r.Path[0] != '/':
		return fmt.Errorf("rule of %s: path %q: expected a path that begins with /", r.Source, r.Path)
	}
	return nil
}

func newPaths() *paths { return &paths{exact: map[string]int{}, prefix: map[string]int{}} }

// host returns the paths of a rule's host, and makes them when there are none yet.
func (t *Table) host(h string) *paths {
	m, key := t.exact, strings.TrimSuffix(strings.ToLower(h), ".")
	if key == "" {
		return t.any
	}
	if key[0] == '*' {
		m, key = t.wildcard, key[1:]
	}
	p := m[key]
	if p == nil {
		p = newPaths()
		m[key] = p
	}
	return p
}

// add adds r, whose index is i, unless an equal rule was added before.
func (p *paths) add(r Rule, i int) {
	path := target.Rule(r.Path)
	m, key := p.prefix, strings.TrimSuffix(path, "/")
	if r.Exact {
		m, key = p.exact, cmp.Or(path, "/")
	}
	if _, taken := m[key]; !taken {
		m[key] = i
	}
}

func (p *paths) sortLengths() {
	for k := range p.prefix {
		p.lengths = append(p.lengths, len(k))
	}
	slices.Sort(p.lengths)
	p.lengths = slices.Compact(p.lengths)
	slices.Reverse(p.lengths)
}

// Match returns the index of the rule for a request, or -1. host is the Host header (or :authority) as the client sent
// it, in upper or lower case, with or without port and trailing dot. path is that of a target.Target.
func (t *Table) Match(host, path string) int {
	host = Hostname(host)
	if len(host) > maxHost {
		return t.any.match(path)
	}
	var buf [maxHost]byte
	name := appendLower(buf[:0], host)
	if p := t.exact[string(name)]; p != nil {
		if i := p.match(path); i >= 0 {
			return i
		}
	}
	if dot := strings.IndexByte(host, '.'); dot > 0 && len(t.wildcard) > 0 {
		if p := t.wildcard[string(name[dot:])]; p != nil {
			if i := p.match(path); i >= 0 {
				return i
			}
		}
	}
	return t.any.match(path)
}

func (p *paths) match(path string) int {
	if i, ok := p.exact[path]; ok {
		return i
	}
	for _, n := range p.lengths {
		if n > len(path) || n < len(path) && n > 0 && path[n] != '/' {
			continue
		}
		if i, ok := p.prefix[path[:n]]; ok {
			return i
		}
	}
	return -1
}

// Hostname returns a Host header without port, brackets and trailing dot.
func Hostname(hostport string) string {
	if strings.HasPrefix(hostport, "[") {
		if end := strings.IndexByte(hostport, ']'); end > 0 {
			return hostport[1:end]
		}
	}
	if colon := strings.IndexByte(hostport, ':'); colon >= 0 && strings.IndexByte(hostport[colon+1:], ':') < 0 {
		hostport = hostport[:colon]
	}
	return strings.TrimSuffix(hostport, ".")
}

// appendLower appends s with ASCII letters in lower case. DNS ignores the case of no other letters (RFC 4343).
func appendLower(dst []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}
