package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/await"
)

// Even with many problems in a cluster's objects, pods can be attached and all problems are reported.
func TestManyProblems(t *testing.T) {
	n := newMachine(t)
	const many = 1000
	var list strings.Builder
	for i := range many {
		fmt.Fprintf(&list, "---\n{apiVersion: v1, kind: Service, metadata: {name: broken-%d, namespace: default}, spec: {ports: [{port: 80}]}}\n", i)
	}
	n.manifest("services.yaml", list.String())
	n.start()
	n.ready()
	got := n.problems()
	for i := range many {
		if !strings.Contains(got, fmt.Sprintf("broken-%d: ", i)) {
			t.Fatalf("nothing is told of Service broken-%d in %d bytes", i, len(got))
		}
	}
	if wrong := n.counters().Of("tapestry_problems"); wrong["error"]+wrong["warning"] < many {
		t.Errorf("counted are %v", wrong)
	}
	s := n.sandbox("c1", "web")
	s.works("STATUS")
	s.works("ADD")
	s.works("DEL")
}

// Every counter has one name and a help text, and the counters and tables of every part are there.
func TestTold(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	n.sandbox("c1", "web").works("ADD")
	// The pod's kernel says something to all its neighbours, which is dropped.
	await.Until(t, "a drop", func() bool { return len(n.counters().Find("tapestry_drops_total").Values) > 0 })
	list := n.counters()
	seen := map[string]bool{}
	for _, c := range list {
		if c.Help == "" || seen[c.Name] {
			t.Errorf("%s: %q, told before: %v", c.Name, c.Help, seen[c.Name])
		}
		seen[c.Name] = true
	}
	for _, name := range []string{
		"tapestry_services", "tapestry_peers", "tapestry_link_total", "tapestry_packets_total", "tapestry_drops_total", "tapestry_flows", "tapestry_taps",
		"tapestry_host_port_sockets", "tapestry_ingress_requests_total", "tapestry_pods", "tapestry_problems", "tapestry_state_age_seconds",
		"tapestry_sync_duration_seconds", "tapestry_build_info", "go_goroutines", "process_open_fds",
	} {
		if !seen[name] {
			t.Errorf("%s is not counted", name)
		}
	}
	pods, err := localapi.Pods.Ask(t.Context(), n.api)
	if err != nil || len(pods) != 1 || pods[0].Name != "default/web" {
		t.Errorf("pods: %+v, %v", pods, err)
	}
	frontends, err := localapi.Frontends.Ask(t.Context(), n.api)
	if err != nil || !slices.ContainsFunc(frontends, func(f localapi.Frontend) bool {
		return f.Service == "(cluster DNS)" && f.Frontend == "10.96.0.10:53" && f.Backends == "this node"
	}) {
		t.Errorf("frontends: %+v, %v", frontends, err)
	}
	told, err := n.api.Node(t.Context())
	if err != nil || told.Name != "n1" || told.PublicKey == "" || told.Updated.IsZero() || told.MTU != 1420 || len(told.PodCIDRs) != 2 {
		t.Errorf("node: %+v, %v", told, err)
	}
}
