package whois

import (
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube/codec"
)

const cluster = `
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, creationTimestamp: "2026-01-01T00:00:10Z", labels: {app: web}}, spec: {nodeName: n1}, status: {phase: Running, podIPs: [{ip: 10.244.1.10}, {ip: "fd00::10"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: done}, spec: {nodeName: n1}, status: {phase: Succeeded, podIP: 10.244.1.11}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: host}, spec: {nodeName: n1, hostNetwork: true}, status: {phase: Running, podIP: 192.0.2.1}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: db, name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints:
- {addresses: [10.244.2.20], nodeName: n2, targetRef: {kind: Pod, name: db-0}}
- {addresses: [10.244.1.10], nodeName: n1, targetRef: {kind: Pod, name: other}}
- {addresses: [203.0.113.1]}
`

func TestAt(t *testing.T) {
	objs, err := codec.Decode("cluster.yaml", []byte(cluster))
	if err != nil {
		t.Fatal(err)
	}
	b := Of(&objs)
	later := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		addr string
		when time.Time
		want Who
	}{
		{"10.244.1.10", later, Who{Namespace: "shop", Pod: "web", Node: "n1"}},
		{"::ffff:10.244.1.10", later, Who{Namespace: "shop", Pod: "web", Node: "n1"}},
		{"fd00::10", later, Who{Namespace: "shop", Pod: "web", Node: "n1"}},
		{"10.244.1.10", time.Date(2026, 1, 1, 0, 0, 9, 0, time.UTC), Who{}}, // of the pod before
		{"10.244.1.11", later, Who{}},
		{"192.0.2.1", later, Who{Node: "n1"}},
		{"10.244.2.20", later, Who{Namespace: "db", Pod: "db-0", Node: "n2"}},
		{"203.0.113.1", later, Who{}},
	} {
		var got Who
		if w := b.At(netip.MustParseAddr(c.addr), c.when); w != nil {
			got = Who{Namespace: w.Namespace, Pod: w.Pod, Node: w.Node}
		}
		if got.Namespace != c.want.Namespace || got.Pod != c.want.Pod || got.Node != c.want.Node {
			t.Errorf("%s at %s is %+v, want %+v", c.addr, c.when, got, c.want)
		}
	}
	if w := b.At(netip.MustParseAddr("10.244.1.10"), later); w == nil || w.Labels["app"] != "web" {
		t.Errorf("the labels are %+v", w)
	}
	if w := Of(nil).At(netip.MustParseAddr("10.244.1.10"), later); w != nil {
		t.Errorf("an empty cluster has %+v", w)
	}
}
