package e2e

import (
	"fmt"
	"testing"

	"tapestry.dev/tapestry/test/lab"
)

// clusterPolicyYAML returns a ClusterNetworkPolicy for the pods of one app, in all namespaces.
func clusterPolicyYAML(name, tier string, priority int, app, rules string) string {
	return fmt.Sprintf("---\napiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec:\n  tier: %s\n  priority: %d\n"+
		"  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: %s}}}}\n  %s\n", name, tier, priority, app, rules)
}

// from returns a peer: pods of one app, in all namespaces.
func from(app string) string {
	return "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: " + app + "}}}}"
}

// TestClusterNetworkPolicy has tiers judge pods, a Service and clients outside.
func TestClusterNetworkPolicy(t *testing.T) {
	c, yaml := policyLab(t, "e2e-tiers", testTime*3)
	client, other, guest, outside := lab.Pod("client"), lab.Pod("other"), lab.Pod("blue/guest"), lab.Outside()
	far, far6, web := at(c.addr(t, "far", false), 9000), at(c.addr(t, "far", true), 9000), at(c.addr(t, "far", false), 8080)
	near, service, port := at(c.addr(t, "near", false), 9000), at(c.addr(t, "svc/far", false), 81), at(c.addr(t, "node-1", false), 30082)
	permits := policyYAML("permits", "far", "ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]")
	deny := "{action: Deny, from: [{namespaces: {}}]}"
	type check struct {
		where         lab.Target
		network, addr string
		want          bool
	}
	for _, step := range []struct {
		what, policies string
		checks         []check
	}{
		{"Admin denies what a NetworkPolicy permits", permits + clusterPolicyYAML("lockdown", "Admin", 10, "far", "ingress: ["+deny+"]"), []check{
			{client, "tcp", far, false}, {client, "tcp", far6, false}, {client, "udp", far, false}, {client, "tcp", service, false}, {client, "tcp", near, true},
		}},
		{"Pass leaves it to the NetworkPolicy", permits + clusterPolicyYAML("lockdown", "Admin", 10, "far", "ingress: [{action: Pass, from: ["+from("client")+", "+from("guest")+"]}, "+deny+"]"), []check{
			{client, "tcp", far, true}, {client, "tcp", far6, true}, {client, "tcp", service, true}, {guest, "tcp", far, false}, {other, "tcp", far, false},
		}},
		{"Admin accepts what a NetworkPolicy denies", permits + clusterPolicyYAML("watch", "Admin", 5, "far", "ingress: [{action: Accept, from: ["+from("guest")+"]}]"), []check{
			{guest, "tcp", far, true}, {client, "tcp", far, true}, {other, "tcp", far, false},
		}},
		{"Baseline yields to a NetworkPolicy", permits + clusterPolicyYAML("default", "Baseline", 10, "far", "ingress: ["+deny+"]"), []check{
			{client, "tcp", far, true}, {other, "tcp", far, false},
		}},
		{"Baseline alone", clusterPolicyYAML("default", "Baseline", 10, "far", "ingress: ["+deny+"]"), []check{
			{client, "tcp", far, false}, {other, "tcp", far, false}, {client, "tcp", near, true}, {outside, "tcp", port, true},
		}},
		{"the smaller priority, and a port by its name", clusterPolicyYAML("all", "Admin", 20, "far", "ingress: ["+deny+"]") +
			clusterPolicyYAML("line", "Admin", 10, "far", "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: tcp-line}]}]"), []check{
			{client, "tcp", far, true}, {client, "udp", far, false}, {client, "tcp", web, false},
		}},
		{"a network is out of reach", clusterPolicyYAML("out", "Admin", 10, "client", "egress: [{action: Deny, to: [{networks: [\""+c.addr(t, "near", false).String()+"/32\"]}]}]"), []check{
			{client, "tcp", near, false}, {other, "tcp", near, true}, {client, "tcp", far, true},
		}},
	} {
		c.edit(t, yaml+step.policies)
		for _, k := range step.checks {
			c.may(t, k.where, k.network, k.addr, k.want, step.what)
		}
	}
}

// TestTiersOverRestarts: agents are killed while a pod tries what a policy of the cluster forbids, although a
// NetworkPolicy permits it. It never succeeds, and what passes goes on.
func TestTiersOverRestarts(t *testing.T) {
	c, yaml := policyLab(t, "e2e-tiers-restarts", 3*testTime)
	far := at(c.addr(t, "far", false), 9000)
	c.edit(t, yaml+policyYAML("permits", "far", "ingress: [{}]")+clusterPolicyYAML("lockdown", "Admin", 10, "far", "ingress: [{action: Deny, from: ["+from("guest")+"]}]"))
	c.may(t, lab.Pod("blue/guest"), "tcp", far, false, "the guest is denied")
	c.may(t, lab.Pod("client"), "tcp", far, true, "the client is permitted")
	denied, goes := c.begin(t, lab.Pod("blue/guest"), "tries", far), c.talk(t, lab.Pod("client"), far)
	for range 2 {
		c.killed(t, "node-1")
		c.killed(t, "node-2")
	}
	if counts := decode[[2]int](t, denied.end(t)); counts[0] > 0 || counts[1] < 2 {
		t.Errorf("%d connections got through, and %d did not", counts[0], counts[1])
	}
	goes.unharmed(t)
}
