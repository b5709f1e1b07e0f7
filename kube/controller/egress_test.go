package controller_test

import (
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/controller"
)

const egressObjects = `
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {rack: a}}, spec: {podCIDRs: [10.244.2.0/24]}}
---
{apiVersion: v1, kind: Node, metadata: {name: leaving, labels: {rack: a}}, spec: {podCIDRs: [10.244.3.0/24], unschedulable: true}}
---
apiVersion: tapestry.dev/v1alpha1
kind: EgressAddress
metadata: {name: good, generation: 3}
spec: {addresses: [203.0.113.50], namespaces: [shop]}
---
apiVersion: tapestry.dev/v1alpha1
kind: EgressAddress
metadata: {name: one}
spec: {addresses: [203.0.113.51], namespaces: [shop], nodeSelector: {matchLabels: {rack: a}}}
---
apiVersion: tapestry.dev/v1alpha1
kind: EgressAddress
metadata: {name: twice}
spec: {addresses: [203.0.113.50, 10.96.0.9], namespaces: [shop]}
`

// Each EgressAddress is told whether it can be used, and a second look changes nothing.
func TestEgressStatus(t *testing.T) {
	objs, err := codec.Decode("in.yaml", []byte(egressObjects))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	out := controller.EgressStatus(objs, now)
	want := map[string]string{
		"good":  "True Ready 2 nodes can be the gateway",
		"one":   "True Ready one node can be the gateway: there is no other when it fails",
		"twice": "False Unusable its pods reach nothing outside: spec.addresses[0]: 203.0.113.50 is an address of EgressAddress \"good\": take an address that nobody else has; spec.addresses[1]: 10.96.0.9 is in a range",
	}
	for _, e := range out.EgressAddresses {
		if len(e.Status.Conditions) != 1 {
			t.Fatalf("%s has the conditions %v", e.Name, e.Status.Conditions)
		}
		c := e.Status.Conditions[0]
		if got := string(c.Status) + " " + c.Reason + " " + c.Message; c.Type != "Ready" || !strings.HasPrefix(got, want[e.Name]) || c.ObservedGeneration != e.Generation || !c.LastTransitionTime.Time.Equal(now) {
			t.Errorf("%s: %+v, want %s", e.Name, c, want[e.Name])
		}
	}
	again := controller.EgressStatus(out, now.Add(time.Hour))
	for i, e := range again.EgressAddresses {
		if e != out.EgressAddresses[i] {
			t.Errorf("%s is written again: %+v", e.Name, e.Status)
		}
	}
}
