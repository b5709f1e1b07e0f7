package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/doctor"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// hostPortYAML returns a pod of the built-in server with host ports, each as in "127.0.0.1:20323:9000/TCP".
func hostPortYAML(name, node string, ports ...string) string {
	var list []string
	for i, p := range ports {
		to, proto, _ := strings.Cut(p, "/")
		colon := strings.LastIndex(to, ":")
		host := netip.MustParseAddrPort(to[:colon])
		entry := fmt.Sprintf("{name: %s-%d, hostPort: %d, containerPort: %s, protocol: %s", strings.ToLower(proto), i, host.Port(), to[colon+1:], proto)
		if !host.Addr().IsUnspecified() {
			entry += fmt.Sprintf(", hostIP: %q", host.Addr())
		}
		list = append(list, entry+"}")
	}
	// The server listens on the container's ports.
	before, after, _ := strings.Cut(podYAML(name, node), "    args:")
	_, after, _ = strings.Cut(after, "\n")
	return before + "    ports: [" + strings.Join(list, ", ") + "]\n" + after
}

// TestHostPorts is the conformance test of hostPorts with more cases: three pods on one node have the same port with
// different addresses and protocols, and clients everywhere ask them.
func TestHostPorts(t *testing.T) {
	c := up(t, "hostports", nodesYAML+podYAML("client", "node-1")+podYAML("stranger", "node-2"))
	node := c.addr(t, "node-1", false)
	const port, open = 20323, 20324 // below those that Linux gives to clients by itself
	pods := hostPortYAML("one", "node-1", fmt.Sprintf("127.0.0.1:%d:9000/TCP", port)) +
		hostPortYAML("two", "node-1", fmt.Sprintf("%s:%d:9000/TCP", node, port)) +
		hostPortYAML("three", "node-1", fmt.Sprintf("%s:%d:9000/UDP", node, port), fmt.Sprintf("0.0.0.0:%d:9000/TCP", open), fmt.Sprintf("0.0.0.0:%d:9001/UDP", open))
	base := nodesYAML + podYAML("client", "node-1") + podYAML("stranger", "node-2")
	c.edit(t, base+pods)
	c.ready(t)

	loopback := netip.MustParseAddr("127.0.0.1")
	c.reaches(t, lab.Node("node-1"), "tcp", at(loopback, port), "one")
	for _, from := range []lab.Target{lab.Node("node-1"), lab.Node("node-2")} {
		c.reaches(t, from, "tcp", at(node, port), "two")
		c.reaches(t, from, "udp", at(node, port), "three")
		c.reaches(t, from, "udp", at(node, open), "three")
	}
	c.answered(t, lab.Node("node-1"), "tcp", at(loopback, open), "three")
	c.answered(t, lab.Node("node-1"), "udp", at(loopback, open), "three")
	for _, v6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			c.answered(t, lab.Node("node-1"), network, at(c.addr(t, "node-1", v6), open), "three")
		}
	}
	for _, from := range []struct {
		where lab.Target
		sees  string // the client address that the pod sees; "" for any
	}{
		{lab.Node("node-1"), node.String()}, {lab.Node("node-2"), c.addr(t, "node-2", false).String()},
		{lab.Pod("client"), c.addr(t, "client", false).String()}, {lab.Pod("stranger"), c.addr(t, "stranger", false).String()},
		{lab.Outside(), ""},
	} {
		for _, q := range []struct {
			network string
			port    uint16
			pod     string
		}{{"tcp", port, "two"}, {"udp", port, "three"}, {"tcp", open, "three"}, {"udp", open, "three"}} {
			a := c.ask(t, from.where, q.network, at(node, q.port))
			if a.Error != "" || a.Pod != q.pod {
				t.Errorf("from %v: %s %d was answered by %q, %q; want it to be %s", from.where, q.network, q.port, a.Pod, a.Error, q.pod)
			}
			if host := hostOf(a.Client); from.sees != "" && host != from.sees && a.Error == "" {
				t.Errorf("from %v: the pod sees %s, want %s", from.where, a.Client, from.sees)
			}
		}
	}
	// The port of 127.0.0.1 is for the host alone.
	for _, where := range []lab.Target{lab.Node("node-1"), lab.Pod("client"), lab.Pod("stranger"), lab.Outside()} {
		if a := c.ask(t, where, "tcp", at(node, port)); a.Pod == "one" {
			t.Errorf("from %v: the port of 127.0.0.1 is open to others", where)
		}
	}
	// Another pod asks for a host port that is taken.
	c.edit(t, base+pods+hostPortYAML("zero", "node-1", fmt.Sprintf("0.0.0.0:%d:9000/TCP", open)))
	c.until(t, "the conflict is told", func(s *lab.Status) bool {
		return problem(s, "node node-1", "Pod default/zero", "20324/TCP belongs to Pod default/three")
	})
	c.answered(t, lab.Node("node-1"), "tcp", at(loopback, port), "one")

	// Ports of removed pods are closed.
	c.edit(t, base)
	c.until(t, "the pods are gone", func(s *lab.Status) bool { return len(s.Pods) == 2 })
	for _, addr := range []string{at(loopback, port), at(node, port), at(node, open)} {
		for end := time.Now().Add(patience); ; {
			a := c.ask(t, lab.Node("node-1"), "tcp", addr)
			if a.Error == "refused" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %q %q, want it refused", addr, a.Pod, a.Error)
			}
		}
	}
}

func hostOf(addr string) string {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	return a.Addr().Unmap().String()
}

// TestHealth asks the agents' health endpoints, and the health checks of load balancers.
func TestHealth(t *testing.T) {
	c := up(t, "health", baseYAML+`---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32100
  selector: {app: near}
  ports: [{port: 82, targetPort: 9000}]
`)
	fetch := func(url string) probe.Fetched {
		t.Helper()
		stdout, stderr, code, err := c.Output(c.ctx, lab.Outside(), self(t), "probe", "get", url)
		if err != nil || code != 0 {
			t.Fatalf("exit status %d, %v: %s", code, err, stderr)
		}
		return decode[probe.Fetched](t, stdout)
	}
	for node, want := range map[string]int{"node-1": 200, "node-2": 503} {
		f := fetch("http://" + at(c.addr(t, node, false), 32100) + "/")
		if f.Status != want || !strings.Contains(f.Body, `"service":{"namespace":"default","name":"balanced"}`) {
			t.Errorf("the balancer is told of %s: %+v, want %d", node, f, want)
		}
	}
	at10256, at10249 := "http://127.0.0.1:10256", "http://127.0.0.1:10249"
	get := func(url string) probe.Fetched {
		t.Helper()
		stdout, stderr, code, err := c.Output(c.ctx, lab.Node("node-1"), self(t), "probe", "get", url)
		if err != nil || code != 0 {
			t.Fatalf("exit status %d, %v: %s", code, err, stderr)
		}
		return decode[probe.Fetched](t, stdout)
	}
	if f := get(at10256 + "/readyz"); f.Status != 200 || f.Body != "[+]cluster ok\n[+]keeper ok\n[+]host ok\n[+]packets ok\n[+]pods ok\n" {
		t.Errorf("readyz: %+v", f)
	}
	for _, path := range []string{"/healthz", "/livez"} {
		if f := get(at10256 + path); f.Status != 200 || !strings.Contains(f.Body, `"lastUpdated":`) {
			t.Errorf("%s: %+v", path, f)
		}
	}
	c.answered(t, lab.Pod("client"), "tcp", at(c.addr(t, "far", false), 9000), "far")
	if f := get(at10256 + "/metrics"); f.Status != 404 {
		t.Errorf("whoever may ask for the node's health is told its metrics: %d", f.Status)
	}
	f := get(at10249 + "/metrics")
	for _, want := range []string{
		`tapestry_packets_total{verdict="to-link"}`, `tapestry_flows{state=`, `tapestry_peers{state="up"} 1`, `tapestry_taps{offloads=`,
		"tapestry_sync_duration_seconds_count", "tapestry_state_age_seconds", "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
		"kubeproxy_sync_proxy_rules_duration_seconds_count", "kubeproxy_network_programming_duration_seconds_count", "go_goroutines", "tapestry_build_info{",
		`coredns_dns_requests_total{`, "coredns_dns_request_duration_seconds_count", "coredns_forward_requests_total",
	} {
		if f.Status != 200 || !strings.Contains(f.Body, want) {
			t.Errorf("metrics: %d, %s is missing", f.Status, want)
		}
	}
}

// TestStatus asks an agent for what 'tapestry status' and 'tapestry doctor' show. The agent's socket is not named.
func TestStatus(t *testing.T) {
	c := up(t, "status", baseYAML)
	got := tapestryLab(t, "status", "--name", c.Name, "node-1", "-o", "json")
	if got.code != 0 {
		t.Fatalf("status: exit status %d: %s", got.code, got.stderr)
	}
	s := decode[struct {
		Node     localapi.Node
		Peers    []localapi.Peer
		Pods     []localapi.Pod
		Counters counter.List
	}](t, got.stdout)
	d := s.Node
	if d.Name != "node-1" || !d.HostTAP || len(d.Missing) != 0 || len(s.Peers) != 1 || s.Peers[0].Name != "node-2" {
		t.Errorf("got %+v, %+v", d, s.Peers)
	}
	if known, ports := s.Counters.Get("tapestry_services"), s.Counters.Get("tapestry_node_ports"); known < 2 || ports != 4 {
		t.Errorf("%v Services with %v NodePorts", known, ports)
	}
	said, err := exec.Command(theProduct(t), "--version").Output()
	if err != nil || d.Version == "" || strings.TrimSpace(string(said)) != "tapestry version "+d.Version {
		t.Errorf("the agent is of version %q, the program says %q, %v", d.Version, said, err)
	}
	names := map[string]bool{}
	for _, p := range s.Pods {
		names[p.Name] = true
	}
	if !names["default/client"] || !names["default/near"] || !names["host"] || names["default/far"] {
		t.Errorf("the pods of node-1 are %v", names)
	}
	if got = tapestryLab(t, "status", "--name", c.Name, "node-1"); got.code != 0 || !strings.Contains(got.stdout, "default/near") {
		t.Errorf("exit status %d: %s%s", got.code, got.stdout, got.stderr)
	}
	if got = tapestryLab(t, "status", "--name", c.Name, "node-9"); got.code != 1 || !strings.Contains(got.stderr, "the nodes are node-1, node-2") {
		t.Errorf("of a node that is not there: exit status %d: %s", got.code, got.stderr)
	}
	got = tapestryLab(t, "doctor", "--name", c.Name, "node-1", "-o", "json")
	for _, f := range decode[[]doctor.Finding](t, got.stdout) {
		want := doctor.OK
		if f.Check == "api" { // a lab has none
			want = doctor.Unknown
		}
		machine := f.Check == "tap" || f.Check == "rules" || f.Check == "ping" // not the lab's
		if f.Severity != want && !machine {
			t.Errorf("doctor: %+v", f)
		}
	}
}
