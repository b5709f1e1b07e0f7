// Package match finds the route of an HTTP request by the precedence of networking.k8s.io/v1 Ingress. It is pure: rules
// in, an immutable Table out, and Match answers from host and path alone, without allocating.
//
// The order, from the Ingress documentation ("Path types", "Multiple matches", "Hostname wildcards"): an exact host is
// asked before a wildcard host, and that before a rule for any host; within a host the Exact path is asked before
// prefixes, and the longest prefix, counted in whole path elements, wins. A host whose paths do not match passes the
// request on to the next less specific host, since a rule matches only when host and path both do.
package match

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tapestry.dev/tapestry/ingress/target"
)

// maxHost is the longest DNS name in its text form (RFC 1035 section 2.3.4); no longer host can match a rule with one.
const maxHost = 253

// Rule is one host and path. Its place in the slice given to Compile is its identity.
type Rule struct {
	// Host is a name, "*." and a name for exactly one label more, or "" for any.
	Host string
	// Path begins with "/", with or without percent escapes; "" is "/".
	Path string
	// Exact compares the whole path; otherwise Path is a prefix, element by element, and its trailing slash says nothing.
	Exact bool
	// Source settles equal rules: the lesser one wins. When it is equal too, the earlier rule wins.
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
	// lengths of the keys of prefix, longest first: a request costs one lookup per length, however many slashes its path
	// has (walking its slashes would let a hostile path cost the square of its length).
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

// host returns the paths of a rule's host, made at need.
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

// add keeps the first of equal rules.
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
// it, in any case, with or without port and trailing dot; path is that of a target.Target.
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

// Hostname is a Host header without port, brackets and trailing dot. It shares memory with hostport.
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

// appendLower lowers ASCII only: DNS compares no other letters without case (RFC 4343).
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
