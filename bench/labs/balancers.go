package labs

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"

	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab"
)

//go:embed loadbalancer.yaml
var loadBalancer string

// balancers is the range of load balancers' addresses (RFC 2544). The manifest gives the servers those of balancerOf.
var balancers = netip.MustParsePrefix("198.18.7.0/24")

var balancerOf = map[string]netip.Addr{
	"balancer/near": netip.MustParseAddr("198.18.7.1"), "balancer/far": netip.MustParseAddr("198.18.7.2"),
}

// ranges returns the ranges that nodes route into their host TAPs.
func (s Spec) ranges() []netip.Prefix {
	if s.Balancers {
		return []netip.Prefix{balancers}
	}
	return nil
}

// routeBalancers has outside route the addresses of load balancers to the first node, as a router before a cluster
// does.
func (l *Lab) routeBalancers(ctx context.Context) error {
	ns, err := l.namespace(ctx, lab.Outside())
	if err != nil {
		return err
	}
	if err := tap.AddRoute(ns, "eth0", tap.Route{Dst: balancers, Via: l.addrs["node/node-1"]}); err != nil {
		return fmt.Errorf("route load balancers to node-1: %w", err)
	}
	for host, a := range balancerOf {
		l.addrs[host] = a
	}
	return nil
}
