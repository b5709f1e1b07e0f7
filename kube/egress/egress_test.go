package egress_test

import (
	"fmt"
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/strip"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/egress"
)

// A pod with more labels than are kept in memory is refused the outside where labels decide, and only there. What is
// kept of it comes to the same.
func TestManyLabels(t *testing.T) {
	for n, selected := range map[int]bool{kube.MaxPodLabels: true, kube.MaxPodLabels + 1: false} {
		var labels strings.Builder
		for i := range n - 1 {
			fmt.Fprintf(&labels, "a%d: x, ", i)
		}
		objs, err := codec.Decode("in.yaml", fmt.Appendf(nil, `
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: EgressAddress, metadata: {name: some}, spec: {addresses: [203.0.113.50], namespaces: [shop], podSelector: {matchLabels: {z: "1"}}}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: EgressAddress, metadata: {name: all}, spec: {addresses: [203.0.113.51], namespaces: [bank]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: many, namespace: shop, labels: {%[1]s z: "1"}}, spec: {nodeName: n1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: many, namespace: bank, labels: {%[1]s z: "1"}}, spec: {nodeName: n1}}
`, &labels))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // as they are written, and as agents keep them
			var say kube.Report
			got := new(egress.Stage).Of("n1", &objs, nil, &say).Pods.Addrs
			if len(got["bank/many"]) != 1 || len(got["shop/many"]) == 1 != selected {
				t.Errorf("%d labels: the pods leave from %v", n, got)
			}
			if _, held := got["shop/many"]; !held || len(say.Problems) == 0 != selected {
				t.Errorf("%d labels: %v, the problems are %v", n, got, say.Problems)
			}
			for _, p := range objs.Pods {
				strip.Pod(p)
			}
		}
	}
}
