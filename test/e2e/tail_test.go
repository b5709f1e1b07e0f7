package e2e

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// tails has a Service that leads back to its own NodePort, and an Ingress that leads back to the Ingress ports.
const tails = `---
apiVersion: v1
kind: Service
metadata: {name: tail}
spec: {type: NodePort, ports: [{name: t, port: 80, nodePort: 30181}, {name: u, port: 80, protocol: UDP, nodePort: 30181}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: tail-1, labels: {kubernetes.io/service-name: tail}}
addressType: IPv4
endpoints: [{addresses: [HOST]}]
ports: [{name: t, port: 30181}, {name: u, port: 30181, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: round}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: round-1, labels: {kubernetes.io/service-name: round}}
addressType: IPv4
endpoints: [{addresses: [NODE]}]
ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: round}
spec: {rules: [{host: round.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: round, port: {number: 80}}}}]}}]}
`

// TestTails: endpoints that a namespace's user wrote lead back to the NodePort or the Ingress that they belong to. No
// connection or request goes round in a circle.
func TestTails(t *testing.T) {
	node, pods := netip.MustParseAddr("172.31.0.11"), netip.MustParsePrefix("10.244.1.0/24")
	host := addressing.Host(pods) // which the control plane does not know
	c := up(t, "tails", baseYAML+strings.NewReplacer("NODE", node.String(), "HOST", host.String()).Replace(tails))
	if n := nodeOf(c.status(t), "node-1"); !slices.Contains(n.Addrs, node) || !slices.Contains(n.PodCIDRs, pods) {
		t.Fatalf("node-1 is %+v, want %s with the pods %s", n, node, pods)
	}
	for _, network := range []string{"tcp", "udp"} {
		if got := c.ask(t, lab.Outside(), network, at(node, 30181), "--timeout", "2s"); got.Error == "" {
			t.Errorf("%s: an answer from nobody: %+v", network, got)
		}
	}
	argv := []string{self(t), "probe", "get", "--connect", at(node, 80), "http://round.example/"}
	stdout, stderr, code, err := c.Output(c.ctx, lab.Outside(), argv...)
	if err != nil || code != 0 {
		t.Fatalf("probe: exit status %d, %v: %s", code, err, stderr)
	}
	if got := decode[probe.Fetched](t, stdout); got.Status != http.StatusBadGateway {
		t.Errorf("an Ingress that leads to itself: %+v", got)
	}
	counters := c.counters(t, "node-1")
	if requests := counters.Get("tapestry_ingress_requests_total"); requests != 1 {
		t.Errorf("of one request there were %v", requests)
	}
	held := counters.Of("tapestry_host_port_conversations")
	if held["tcp"] > 2 || held["udp"] > 2 {
		t.Errorf("of two connections and a request there are %v", held)
	}
}
