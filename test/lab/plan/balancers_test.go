package plan

import (
	"slices"
	"strings"
	"testing"
)

// TestLoadBalancers checks that Services get addresses of the pools in the file, and keep them when others come and go
// and when the pool becomes another. Whoever gets none is told why.
func TestLoadBalancers(t *testing.T) {
	p := newPlanner()
	pool := func(name, spec string) string {
		return "{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: " + name + "}, spec: {" + spec + "}}"
	}
	has := func(c *Cluster) string {
		var out []string
		for _, s := range ServiceList(c.Snapshot(nil)) {
			if s.Type == "LoadBalancer" {
				out = append(out, s.Name+"="+strings.Join(s.Outside, ","))
			}
		}
		return strings.Join(out, " ")
	}
	const lb = "type: LoadBalancer, selector: {a: b}, ports: [{port: 80}]"
	c := mustPlan(t, p, doc(node("n1"), pool("a", "addresses: [192.0.2.4/30]"), service("x", lb), service("z", lb+", ipFamilies: [IPv6]")))
	if got := has(c); got != "x=192.0.2.4 z=" {
		t.Errorf("at first %s", got)
	}
	if !slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.Contains(w, `no address is left for it in AddressPool "a"`) }) {
		t.Errorf("no warning that z has none: %q", c.Warnings)
	}
	c = mustPlan(t, p, doc(node("n1"), pool("a", "addresses: [198.51.100.4/30]"), service("w", lb), service("x", lb)))
	if got := has(c); got != "w=198.51.100.4 x=192.0.2.4" {
		t.Errorf("with another pool %s", got)
	}
	c = mustPlan(t, p, doc(node("n1"), pool("a", "nodes: {}"), service("y", lb)))
	if got := has(c); got == "y=" || got != "y="+c.Nodes[0].Addrs[0].String() {
		t.Errorf("on nodes %s, whose addresses are %v", got, c.Nodes[0].Addrs)
	}
}
