package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// unprobedYAML is podYAML without a readiness probe, which would have to reach the pod from its node.
func unprobedYAML(name, node string) string {
	yaml := podYAML(name, node)
	return yaml[:strings.Index(yaml, "    readinessProbe")]
}

// TestPolicyOfIngressWithoutHostTAP: pods reach the Ingress of a node without a host TAP through a host socket, which
// has the node's address. They are judged as themselves all the same, on their own node and from another one.
func TestPolicyOfIngressWithoutHostTAP(t *testing.T) {
	yaml := nodesYAML + unprobedYAML("client", "node-1") + unprobedYAML("other", "node-1") + unprobedYAML("near", "node-1") +
		unprobedYAML("friend", "node-2") + unprobedYAML("stranger", "node-2") + `---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: near}, ports: [{port: 80, targetPort: 8080}]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
` + policyYAML("near", "near", "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [client, friend]}]}}]}]")
	c := upWith(t, testTime, lab.Options{Name: "policy-ingress", NoHostTAP: true}, yaml)
	node := at(c.addr(t, "node-1", false), 80)
	for _, x := range []struct {
		who  lab.Target
		want int
	}{
		{lab.Pod("client"), http.StatusOK}, {lab.Pod("other"), http.StatusForbidden},
		{lab.Pod("friend"), http.StatusOK}, {lab.Pod("stranger"), http.StatusForbidden},
		{lab.Node("node-1"), http.StatusOK}, // which may reach its pods always
	} {
		ctx, cancel := context.WithTimeout(c.ctx, patience)
		var got probe.Fetched
		for got.Status != x.want && ctx.Err() == nil { // 403 and 503 until the pods are known
			stdout, stderr, code, err := c.Output(c.ctx, x.who, self(t), "probe", "get", "--connect", node, "http://web.example/")
			if err != nil || code != 0 {
				t.Fatalf("probe: exit status %d, %v: %s", code, err, stderr)
			}
			got = decode[probe.Fetched](t, stdout)
		}
		cancel()
		if got.Status != x.want {
			t.Errorf("%v: got %+v, want %d", x.who, got, x.want)
		}
	}
}
