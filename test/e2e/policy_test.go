package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// tries connects to an address, again and again, until the input ends, and prints how often that succeeded, and how
// often it did not: ADDR.
func tries(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	var counts [2]int
	d := net.Dialer{Timeout: 200 * time.Millisecond}
	for ctx.Err() == nil {
		c, err := d.DialContext(ctx, "tcp", args[0])
		switch {
		case err == nil:
			counts[0]++
			c.Close()
		case ctx.Err() == nil:
			counts[1]++
		}
		if counts[0]+counts[1] == 1 {
			started()
		}
	}
	return print(counts)
}

// policyYAML returns a NetworkPolicy for the pods of one app.
func policyYAML(name, app, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec:\n  podSelector: {matchLabels: {app: %s}}\n  %s\n", name, app, spec)
}

// policyLab has clients of two namespaces, and servers on both nodes.
func policyLab(t *testing.T, name string, limit time.Duration) (c *cluster, yaml string) {
	named := strings.Replace(podYAML("far", "node-2"), `args: [--http, "8080", --tcp, "9000", --udp, "9000"]`,
		"ports: [{name: tcp-web, containerPort: 8080}, {name: tcp-line, containerPort: 9000}, {name: line, containerPort: 9000, protocol: UDP}]", 1)
	guest := strings.Replace(podYAML("guest", "node-1"), "{name: guest,", "{name: guest, namespace: blue,", 1)
	yaml = nodesYAML + podYAML("client", "node-1") + podYAML("other", "node-1") + podYAML("near", "node-1") + named + guest +
		serviceYAML("near", "near", 30081) + serviceYAML("far", "far", 30082)
	return upFor(t, limit, name, yaml), yaml
}

// may waits until a question is answered, or is not, as wanted: agents learn of a change a moment after the lab.
func (c *cluster) may(t *testing.T, where lab.Target, network, addr string, want bool, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	var last probe.Answer
	for ctx.Err() == nil {
		if last = c.ask(t, where, network, addr, "--timeout", "500ms"); (last.Error == "") == want {
			return
		}
	}
	t.Fatalf("%s: %s %s was answered by %q, %q; want an answer: %v", what, network, addr, last.Pod, last.Error, want)
}

// TestNetworkPolicy has policies of all kinds judge pods, Services, clients outside and DNS, by both families.
func TestNetworkPolicy(t *testing.T) {
	c, yaml := policyLab(t, "e2e-policy", 3*testTime)
	client, other, guest, outside := lab.Pod("client"), lab.Pod("other"), lab.Pod("blue/guest"), lab.Outside()
	far, far6 := at(c.addr(t, "far", false), 9000), at(c.addr(t, "far", true), 9000)
	web := at(c.addr(t, "far", false), 8080)
	near, service := at(c.addr(t, "near", false), 9000), at(c.addr(t, "svc/far", false), 81)
	port := at(c.addr(t, "node-1", false), 30082) // of a pod on the other node
	type check struct {
		where         lab.Target
		network, addr string
		want          bool
	}
	for _, step := range []struct {
		what, policy string
		checks       []check
	}{
		{"without a policy", "", []check{
			{client, "tcp", far, true}, {client, "tcp", far6, true}, {client, "udp", far, true}, {guest, "tcp", far, true}, {client, "tcp", service, true}, {outside, "tcp", port, true}, {client, "tcp", web, true},
		}},
		{"nothing is permitted", policyYAML("none", "far", "policyTypes: [Ingress]"), []check{
			{client, "tcp", far, false}, {client, "tcp", far6, false}, {client, "udp", far, false}, {guest, "tcp", far, false}, {client, "tcp", service, false}, {outside, "tcp", port, false}, {client, "tcp", near, true},
			{lab.Node("node-2"), "tcp", far, true},
		}},
		{"pods by their labels", policyYAML("labels", "far", "ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]"), []check{
			{client, "tcp", far, true}, {client, "tcp", far6, true}, {client, "udp", far, true}, {client, "tcp", service, true}, {other, "tcp", far, false}, {guest, "tcp", far, false}, {outside, "tcp", port, false},
		}},
		{"a namespace", policyYAML("namespace", "far", "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}}}]}]"), []check{
			{guest, "tcp", far, true}, {guest, "tcp", service, true}, {client, "tcp", far, false},
		}},
		{"the client outside, by its own address", policyYAML("range", "far", "ingress: [{from: [{ipBlock: {cidr: "+c.addr(t, "outside", false).String()+"/32}}]}]"), []check{
			{outside, "tcp", port, true}, {client, "tcp", far, false},
		}},
		{"all but the client outside", policyYAML("except", "far", "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: ["+c.addr(t, "outside", false).String()+"/32]}}]}]"), []check{
			{outside, "tcp", port, false}, {client, "tcp", far, true}, {client, "tcp", far6, false},
		}},
		{"a port by its name", policyYAML("named", "far", "ingress: [{ports: [{port: tcp-line}]}]"), []check{
			{client, "tcp", far, true}, {outside, "tcp", port, true}, {client, "udp", far, false}, {client, "tcp", web, false},
		}},
		{"a range of ports", policyYAML("ports", "far", "ingress: [{ports: [{port: 8000, endPort: 8999}, {port: 9000, protocol: UDP}]}]"), []check{
			{client, "udp", far, true}, {client, "tcp", web, true}, {client, "tcp", far, false},
		}},
		{"nothing leaves", policyYAML("egress", "client", "policyTypes: [Egress]"), []check{
			{client, "tcp", far, false}, {client, "tcp", near, false}, {client, "tcp", service, false}, {client, "tcp", at(c.addr(t, "outside", false), 8080), false}, {other, "tcp", near, true},
		}},
		{"one pod, by a port that it names", policyYAML("egress-named", "client", "policyTypes: [Egress]\n  egress: [{to: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: tcp-line}]}]"), []check{
			{client, "tcp", far, true}, {client, "tcp", service, true}, {client, "tcp", web, false}, {client, "tcp", near, false},
		}},
	} {
		c.edit(t, yaml+step.policy)
		for _, k := range step.checks {
			c.may(t, k.where, k.network, k.addr, k.want, step.what)
		}
	}
	if n := c.drops(t, "node-1", "denied") + c.drops(t, "node-2", "denied"); n == 0 {
		t.Error("nothing is counted as denied")
	}
}

// staged makes a policy one that is only watched.
func staged(policy string) string {
	return strings.Replace(policy, "metadata: {", "metadata: {annotations: {tapestry.dev/policy-mode: audit}, ", 1)
}

// explain asks a node's agent why one pod may reach another one, or may not.
func (c *cluster) explain(t *testing.T, node, from, to string) localapi.Explanation {
	t.Helper()
	rows, err := localapi.Explanations.Ask(c.ctx, &localapi.Client{Path: c.Dir + "/nodes/" + node + "/api.sock"}, from, to)
	if err != nil || len(rows) != 1 {
		t.Fatalf("explain %s -> %s on %s: %+v, %v", from, to, node, rows, err)
	}
	return rows[0]
}

// TestStagedPolicies: what a staged policy would deny goes on, over restarts too, and is told, until it is enforced.
func TestStagedPolicies(t *testing.T) {
	c, yaml := policyLab(t, "e2e-policy-staged", 2*testTime)
	client, far := lab.Pod("client"), at(c.addr(t, "far", false), 9000)
	goes := c.talk(t, client, far)
	closed := policyYAML("closed", "far", "policyTypes: [Ingress]") + clusterPolicyYAML("lockdown", "Admin", 10, "far", "ingress: [{action: Deny, from: [{namespaces: {}}]}]")
	watched := staged(policyYAML("closed", "far", "policyTypes: [Ingress]")) +
		staged(clusterPolicyYAML("lockdown", "Admin", 10, "far", "ingress: [{action: Deny, from: [{namespaces: {}}]}]"))
	c.edit(t, yaml+watched)
	told := func() bool {
		c.reaches(t, client, "tcp", far, "far")
		rows, err := localapi.StagedFlows.Ask(c.ctx, &localapi.Client{Path: c.Dir + "/nodes/node-2/api.sock"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.Src == c.addr(t, "client", false) && r.To == "default/far" && r.Port == 9000 && r.Begun > 0 {
				if r.Would != "denied" || r.By != "ClusterNetworkPolicy lockdown ingress[0]" {
					t.Errorf("told is %+v", r)
				}
				return true
			}
		}
		return false
	}
	await.Until(t, "what would be denied is told", told)
	c.killed(t, "node-2")
	await.Until(t, "what would be denied is told again", told)
	goes.unharmed(t)
	if e := c.explain(t, "node-1", "client", "far:9000"); e.Verdict != "permitted" || e.Would != "dropped" || e.To.Staged.Rule != "ClusterNetworkPolicy lockdown ingress[0]" {
		t.Errorf("explained as %+v", e)
	}
	c.edit(t, yaml+closed)
	c.may(t, client, "tcp", far, false, "the policies are enforced")
	for _, node := range []string{"node-1", "node-2"} { // that of the client judges for the other one
		if e := c.explain(t, node, "client", "far:9000"); e.Verdict != "dropped" || e.Would != "" || e.From.Now.Verdict != "permitted" || e.To.Now.Rule != "ClusterNetworkPolicy lockdown ingress[0]" || len(e.To.Now.Policies) != 2 {
			t.Errorf("%s explains %+v", node, e)
		}
	}
	rows, err := localapi.Policies.Ask(c.ctx, &localapi.Client{Path: c.Dir + "/nodes/node-2/api.sock"})
	if err != nil || len(rows) != 2 || rows[0].Pods != 1 || rows[0].Mode != "enforce" || rows[1].Denied == 0 {
		t.Errorf("policies are told as %+v, %v", rows, err)
	}
}

// TestPolicyAndDNS: a pod whose egress is closed resolves nothing, until a policy names the pods of cluster DNS, as
// policies for CoreDNS do.
func TestPolicyAndDNS(t *testing.T) {
	c, yaml := policyLab(t, "e2e-policy-dns", 2*testTime)
	server := c.addr(t, "svc/kube-dns", false)
	resolves := func(want bool, what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(c.ctx, patience)
		defer cancel()
		for ctx.Err() == nil {
			_, _, code, err := c.Output(ctx, lab.Pod("client"), self(t), "e2e-helper", "resolve", at(server, 53), "far.default.svc.cluster.local.")
			if err == nil && (code == 0) == want {
				return
			}
		}
		t.Fatalf("%s: names are resolved, or not, against what is wanted: %v", what, want)
	}
	resolves(true, "without a policy")
	c.edit(t, yaml+policyYAML("egress", "client", "policyTypes: [Egress]"))
	resolves(false, "nothing leaves")
	c.edit(t, yaml+policyYAML("egress", "client", "policyTypes: [Egress]\n  egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]"))
	resolves(true, "DNS is permitted")
	c.may(t, lab.Pod("client"), "tcp", at(c.addr(t, "near", false), 9000), false, "only DNS is permitted")
}

// TestPolicyCuts: a policy that comes cuts the connections that it does not permit, at both ends, and no others.
func TestPolicyCuts(t *testing.T) {
	c, yaml := policyLab(t, "e2e-policy-cuts", 2*testTime)
	far, near := at(c.addr(t, "far", false), 9000), at(c.addr(t, "near", false), 9000)
	port := at(c.addr(t, "node-1", false), 30082)
	cut, stays := c.talk(t, lab.Pod("client"), far, at(c.addr(t, "svc/far", false), 81)), c.talk(t, lab.Pod("client"), near)
	outside := c.talk(t, lab.Outside(), port)
	other := c.talk(t, lab.Pod("other"), far)
	c.edit(t, yaml+policyYAML("labels", "far", "ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]"))
	c.may(t, lab.Pod("client"), "tcp", far, false, "only others are permitted")
	for what, h := range map[string]conversations{"a pod's": cut, "a client's outside": outside} {
		for addr, held := range decode[map[string]probe.Held](t, h.end(t)) {
			if held.Rounds < 1 || !strings.Contains(held.Error, syscall.ECONNRESET.Error()) && !strings.Contains(held.Error, "EOF") {
				t.Errorf("%s connection to %s ended after %d rounds with %q, want a reset", what, addr, held.Rounds, held.Error)
			}
		}
	}
	stays.unharmed(t)
	other.unharmed(t)
}

// TestPolicyOverRestarts: agents are killed, again and again, while a pod tries what a policy forbids. It never
// succeeds, and what the policy permits goes on.
func TestPolicyOverRestarts(t *testing.T) {
	c, yaml := policyLab(t, "e2e-policy-restarts", 3*testTime)
	far, near := at(c.addr(t, "far", false), 9000), at(c.addr(t, "near", false), 9000)
	c.edit(t, yaml+policyYAML("far", "far", "ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]")+
		policyYAML("other", "other", "policyTypes: [Egress]"))
	c.may(t, lab.Pod("blue/guest"), "tcp", far, false, "the far server is closed")
	c.may(t, lab.Pod("other"), "tcp", near, false, "the other pod is closed")
	c.may(t, lab.Pod("client"), "tcp", far, true, "the client is permitted")
	ingress, egress := c.begin(t, lab.Pod("blue/guest"), "tries", far), c.begin(t, lab.Pod("other"), "tries", near)
	goes := c.talk(t, lab.Pod("client"), far)
	for range 3 {
		c.killed(t, "node-1")
		c.killed(t, "node-2")
	}
	for what, h := range map[string]*helper{"ingress": ingress, "egress": egress} {
		counts := decode[[2]int](t, h.end(t))
		if counts[0] > 0 || counts[1] < 2 {
			t.Errorf("%s: %d connections got through, and %d did not", what, counts[0], counts[1])
		}
	}
	goes.unharmed(t)
}
