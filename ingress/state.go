package ingress

import (
	"tapestry.dev/tapestry/ingress/match"
)

// state is a compiled Config. It is immutable, but its upstreams have a state of their own, and later states share
// them. The zero state has no routes.
type state struct {
	config   Config
	table    *match.Table
	routes   []way // by the table's index
	fallback way   // Config.Default
	certs    certificates
	shared   map[ServicePort]*upstream
}

// way is where a route leads.
type way struct {
	*upstream          // nil: nowhere
	upgrades  []string // the protocols of Route.Upgrades
}

// way returns the way of a request. It leads nowhere when no route matches and there is no default.
func (s *state) way(host, path string) way {
	if s.table != nil {
		if i := s.table.Match(host, path); i >= 0 {
			return s.routes[i]
		}
	}
	return s.fallback
}

// compile returns the state of c. It takes what did not change from old, the last one.
func (s *Server) compile(c Config, old *state) (*state, error) {
	next := *old
	next.config = c
	if !identical(c.Certificates, old.config.Certificates) {
		certs, err := newCertificates(c.Certificates)
		if err != nil {
			return nil, err
		}
		next.certs = certs
	}
	if old.table != nil && identical(c.Routes, old.config.Routes) && c.Default == old.config.Default {
		return &next, nil
	}
	rules := make([]match.Rule, len(c.Routes))
	for i, r := range c.Routes {
		rules[i] = match.Rule{Host: r.Host, Path: r.Path, Exact: r.Type == Exact, Source: r.Source}
	}
	var err error
	if next.table, err = match.Compile(rules); err != nil {
		return nil, err
	}
	next.shared, next.routes, next.fallback = map[ServicePort]*upstream{}, make([]way, len(c.Routes)), way{}
	share := func(p ServicePort) *upstream {
		u := next.shared[p]
		if u == nil {
			if u = old.shared[p]; u == nil {
				u = s.newUpstream(p)
			}
			next.shared[p] = u
		}
		return u
	}
	for i := range c.Routes {
		next.routes[i] = way{share(c.Routes[i].Backend), c.Routes[i].Upgrades}
	}
	if c.Default != nil {
		next.fallback = way{upstream: share(*c.Default)}
	}
	return &next, nil
}

// identical reports whether two slices are the same one. It does not compare elements.
func identical[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
