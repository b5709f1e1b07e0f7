package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/ingress/match"
)

// state is a compiled Config. It is immutable but for the endpoints' health, which it shares with its successors.
// The zero state has no routes.
type state struct {
	table    *match.Table
	routes   []*upstream // by the table's index
	fallback *upstream   // Config.Default
	certs    certificates
	shared   map[string]*upstream // by Backend.Service and endpoints, for the next compile
	health   map[netip.AddrPort]*endpoint
}

// upstream answers where a request goes; nil: nowhere.
func (s *state) upstream(host, path string) *upstream {
	if s.table != nil {
		if i := s.table.Match(host, path); i >= 0 {
			return s.routes[i]
		}
	}
	return s.fallback
}

// compile builds c's state. What old knows of endpoints and of unchanged upstreams is taken over.
func (g *Gateway) compile(c Config, old *state) (*state, error) {
	rules := make([]match.Rule, len(c.Routes))
	for i, r := range c.Routes {
		rules[i] = match.Rule{Host: r.Host, Path: r.Path, Exact: r.Type == Exact, Source: r.Source}
	}
	table, err := match.Compile(rules)
	if err != nil {
		return nil, err
	}
	certs, err := newCertificates(c.Certificates)
	if err != nil {
		return nil, err
	}
	s := &state{table: table, certs: certs, shared: map[string]*upstream{}, health: map[netip.AddrPort]*endpoint{}}
	for _, r := range c.Routes {
		u, err := g.share(s, old, r.Backend)
		if err != nil {
			return nil, fmt.Errorf("route of %s: %w", r.Source, err)
		}
		s.routes = append(s.routes, u)
	}
	if c.Default != nil {
		if s.fallback, err = g.share(s, old, *c.Default); err != nil {
			return nil, fmt.Errorf("default backend: %w", err)
		}
	}
	return s, nil
}

// share returns the upstream for b: the one that s or old already has, when service and endpoints are the same.
func (g *Gateway) share(s, old *state, b Backend) (*upstream, error) {
	addrs := make([]netip.AddrPort, len(b.Endpoints))
	for i, a := range b.Endpoints {
		if !a.IsValid() || a.Port() == 0 {
			return nil, fmt.Errorf("backend %s: endpoint %v: expected an address and a port", b.Service, a)
		}
		addrs[i] = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	slices.SortFunc(addrs, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	addrs = slices.Compact(addrs)

	key := fmt.Sprint(b.Service, addrs)
	u := s.shared[key]
	if u == nil {
		u = old.shared[key]
	}
	if u == nil {
		u = g.newUpstream(b.Service)
		for _, a := range addrs {
			e := cmp.Or(s.health[a], old.health[a])
			if e == nil {
				e = &endpoint{addr: a.String()}
			}
			u.endpoints = append(u.endpoints, e)
		}
	}
	s.shared[key] = u
	for i, a := range addrs {
		s.health[a] = u.endpoints[i]
	}
	return u, nil
}
