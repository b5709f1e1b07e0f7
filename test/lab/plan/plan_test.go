package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/test/lab/kubelet"
)

func parse(t *testing.T, yaml string) kube.Objects {
	t.Helper()
	objects, err := codec.Decode("lab.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func newPlanner() *Planner {
	return New(Options{
		Server: []string{"/bin/tapestry-lab", "serve"}, Env: []string{"PATH=/bin"},
		Upstreams: []netip.Addr{netip.MustParseAddr("203.0.113.53")},
	})
}

func mustPlan(t *testing.T, p *Planner, yaml string) *Cluster {
	t.Helper()
	c, err := p.Plan(parse(t, yaml))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func doc(parts ...string) string { return strings.Join(parts, "\n---\n") }

func node(name string, more ...string) string {
	return "apiVersion: v1\nkind: Node\nmetadata: {name: " + name + "}\n" + strings.Join(more, "\n")
}

func simplePod(name, spec string, meta ...string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + strings.Join(append([]string{""}, meta...), ", ") + "}\n" +
		"spec: {" + spec + "containers: [{name: c, command: [sleep, \"1\"]}]}"
}

func service(name, spec string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {" + spec + "}"
}

func (c *Cluster) pod(t *testing.T, key string) *kubelet.Pod {
	t.Helper()
	for _, p := range c.Pods {
		if p.Key() == key {
			return p
		}
	}
	t.Fatalf("no pod %s", key)
	return nil
}

func text[T interface{ String() string }](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return strings.Join(out, " ")
}

func TestNodes(t *testing.T) {
	for _, test := range []struct {
		name, yaml       string
		addrs, cidrs     string // of the last node
		prefixes, client string
	}{
		{
			"everything given out", doc(node("a"), node("b")),
			"172.31.0.12 fd00:172:31::c", "10.244.2.0/24 fd00:10:244:2::/64",
			"172.31.0.0/24 fd00:172:31::/64", "172.31.0.1 fd00:172:31::1",
		},
		{
			"ranges written",
			doc(node("a"), node("b", "spec: {podCIDRs: [10.1.0.0/16]}")),
			"172.31.0.12 fd00:172:31::c", "10.1.0.0/16", "172.31.0.0/24 fd00:172:31::/64", "172.31.0.1 fd00:172:31::1",
		},
		{
			"a range taken by another node",
			doc(node("a", "spec: {podCIDR: 10.244.2.0/24}"), node("b")),
			"172.31.0.12 fd00:172:31::c", "10.244.3.0/24 fd00:10:244:3::/64",
			"172.31.0.0/24 fd00:172:31::/64", "172.31.0.1 fd00:172:31::1",
		},
		{
			"addresses written",
			doc(node("a"), node("b", "status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}")),
			"192.0.2.1", "10.244.2.0/24 fd00:10:244:2::/64", "192.0.2.0/24 fd00:172:31::/64", "192.0.2.2 fd00:172:31::1",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := mustPlan(t, newPlanner(), test.yaml)
			last := c.Nodes[len(c.Nodes)-1]
			got := [4]string{text(last.Addrs), text(last.PodCIDRs), text(c.Underlay.Prefixes), text(c.Underlay.Outside)}
			if want := [4]string{test.addrs, test.cidrs, test.prefixes, test.client}; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// A range that a running Node was given stays with it, whatever range another Node's object names.
func TestRangesStay(t *testing.T) {
	p := newPlanner()
	mustPlan(t, p, doc(node("a"), node("b")))
	objects, err := codec.Decode("lab.yaml", []byte(doc(node("a"), node("b"), node("c", "spec: {podCIDRs: [10.244.2.128/25]}"))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Plan(objects); err == nil || !strings.Contains(err.Error(), "Node c: spec.podCIDRs: 10.244.2.128/25 overlaps 10.244.2.0/24, which Node b keeps") {
		t.Errorf("got %v, want the overlap with b's range told of c", err)
	}
	c := mustPlan(t, p, doc(node("a"), node("b"), node("c", "spec: {podCIDRs: [10.244.9.0/24]}")))
	if got := text(c.Nodes[1].PodCIDRs); got != "10.244.2.0/24 fd00:10:244:2::/64" {
		t.Errorf("b has %s, want what it had", got)
	}
}

func TestSchedule(t *testing.T) {
	p := newPlanner()
	nodes := doc(node("n1"), node("n2"), "apiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {tapestry.dev/external: \"true\"}}",
		"apiVersion: v1\nkind: Node\nmetadata: {name: n4, labels: {disk: ssd}}")
	c := mustPlan(t, p, doc(nodes,
		simplePod("a", ""), simplePod("b", ""), simplePod("c", ""), simplePod("d", ""),
		simplePod("named", "nodeName: n2, "),
		simplePod("picky", "nodeSelector: {disk: ssd}, "),
		simplePod("pinned", "", `annotations: {tapestry.dev/pod-ips: "10.244.2.77"}`)))
	for name, want := range map[string]string{"a": "n1", "b": "n2", "c": "n4", "d": "n1", "named": "n2", "picky": "n4", "pinned": "n2"} {
		if got := c.pod(t, "default/"+name).Node; got != want {
			t.Errorf("%s is on %s, want %s", name, got, want)
		}
	}
	// Without the pod before it, a pod stays where it is.
	c = mustPlan(t, p, doc(nodes, simplePod("b", "")))
	if got := c.pod(t, "default/b").Node; got != "n2" {
		t.Errorf("b moved to %s", got)
	}
	// Without its node, a pod moves.
	c = mustPlan(t, p, doc(node("n1"), simplePod("b", "")))
	if got := c.pod(t, "default/b").Node; got != "n1" {
		t.Errorf("b is on %s, want n1", got)
	}
}

func TestPodAddresses(t *testing.T) {
	p := newPlanner()
	asked := simplePod("asks", "nodeName: n1, ", `annotations: {tapestry.dev/pod-ips: "10.244.1.10"}`)
	c := mustPlan(t, p, doc(node("n1"), asked, simplePod("a", ""), simplePod("host", "hostNetwork: true, ")))
	for name, want := range map[string]string{
		"asks": "10.244.1.10", "a": "10.244.1.11 fd00:10:244:1::a", "host": "172.31.0.11 fd00:172:31::b",
	} {
		if got := text(c.pod(t, "default/"+name).Addrs); got != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
	first := c.pod(t, "default/a").UID

	// Addresses continue after the last one. A pod with an address keeps it.
	c = mustPlan(t, p, doc(node("n1"), simplePod("new", ""), simplePod("a", "")))
	if got := text(c.pod(t, "default/new").Addrs); got != "10.244.1.12 fd00:10:244:1::b" {
		t.Errorf("a new pod has %s", got)
	}
	if a := c.pod(t, "default/a"); text(a.Addrs) != "10.244.1.11 fd00:10:244:1::a" || a.UID != first {
		t.Errorf("a changed: %+v", a)
	}
	// A pod that asks for an address gets it, and the pod that had it is replaced.
	thief := simplePod("thief", "nodeName: n1, ", `annotations: {tapestry.dev/pod-ips: "10.244.1.11"}`)
	c = mustPlan(t, p, doc(node("n1"), simplePod("a", ""), thief))
	if got := text(c.pod(t, "default/thief").Addrs); got != "10.244.1.11" {
		t.Errorf("the asked address is %s", got)
	}
	if a := c.pod(t, "default/a"); a.UID == first || text(a.Addrs) == "10.244.1.11 fd00:10:244:1::a" {
		t.Errorf("a was not replaced: %+v", a)
	}
}

func TestPodAddressesRunOut(t *testing.T) {
	// A /28 has room for .10 to .14.
	yaml := []string{node("n1", "spec: {podCIDRs: [10.1.0.0/28]}")}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		yaml = append(yaml, simplePod(name, ""))
	}
	p := newPlanner()
	mustPlan(t, p, doc(yaml...))
	_, err := p.Plan(parse(t, doc(append(yaml, simplePod("f", ""))...)))
	if err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("one pod too many: %v", err)
	}
	// The failed plan left no trace: the other pods are unchanged.
	c := mustPlan(t, p, doc(yaml...))
	if got := text(c.pod(t, "default/e").Addrs); got != "10.1.0.14" {
		t.Errorf("e has %s", got)
	}
}

func TestIncarnations(t *testing.T) {
	p := newPlanner()
	yaml := doc(node("n1"), simplePod("a", ""))
	old := mustPlan(t, p, yaml).pod(t, "default/a")
	if again := mustPlan(t, p, yaml).pod(t, "default/a"); again.UID != old.UID {
		t.Error("the same file made another pod")
	}
	labelled := doc(node("n1"), simplePod("a", "", "labels: {x: y}"))
	if again := mustPlan(t, p, labelled).pod(t, "default/a"); again.UID != old.UID {
		t.Error("a label made another pod")
	}
	c := mustPlan(t, p, doc(node("n1"), simplePod("a", "restartPolicy: Never, ")))
	fresh := c.pod(t, "default/a")
	if fresh.UID == old.UID {
		t.Error("another spec made no other pod")
	}
	// The old incarnation keeps the name until it is gone.
	running := map[string]kubelet.Status{old.UID: {Phase: kubelet.Running, Terminating: true}}
	if pods := PodList(c.Snapshot(running)); len(pods) != 1 || pods[0].UID != old.UID {
		t.Errorf("while the old one ends: %+v", pods)
	}
	running[old.UID] = kubelet.Status{Gone: true}
	if pods := PodList(c.Snapshot(running)); len(pods) != 1 || pods[0].UID != fresh.UID {
		t.Errorf("after it: %+v", pods)
	}
	p.Forget(old.UID)
	if mustPlan(t, p, node("n1")); len(p.state.leaving) != 1 {
		t.Errorf("leaving: %v", p.state.leaving)
	}
	if again := mustPlan(t, p, yaml).pod(t, "default/a"); again.UID == old.UID {
		t.Error("a deleted pod came back as itself")
	}
}

func TestServices(t *testing.T) {
	p := newPlanner()
	yaml := []string{
		node("n1"),
		service("plain", "ports: [{port: 80}], selector: {a: b}"),
		service("dual", "ipFamilyPolicy: PreferDualStack, ports: [{port: 80}], selector: {a: b}"),
		service("six", "ipFamilies: [IPv6], ports: [{port: 80}], selector: {a: b}"),
		service("fixed", "clusterIP: 10.96.0.99, type: NodePort, ports: [{port: 80, nodePort: 30080}], selector: {a: b}"),
		service("headless", "clusterIP: None, selector: {a: b}"),
		service("nodeport", "type: NodePort, ports: [{name: t, port: 53}, {name: u, port: 53, protocol: UDP}], selector: {a: b}"),
		service("sticky", "sessionAffinity: ClientIP, ports: [{port: 80}], selector: {a: b}"),
	}
	snapshot := func(c *Cluster) map[string]Service {
		out := map[string]Service{}
		for _, s := range ServiceList(c.Snapshot(nil)) {
			out[s.Namespace+"/"+s.Name] = s
		}
		return out
	}
	before := snapshot(mustPlan(t, p, doc(yaml...)))
	for name, want := range map[string]int{"default/plain": 1, "default/dual": 2, "default/six": 1} {
		ips := before[name].ClusterIPs
		if len(ips) != want {
			t.Errorf("%s has %q, want %d", name, ips, want)
		}
	}
	if ip := before["default/six"].ClusterIPs[0]; !strings.HasPrefix(ip, "fd00:10:96:") {
		t.Errorf("six has %s", ip)
	}
	if ips := before["kube-system/kube-dns"].ClusterIPs; !slices.Equal(ips, []string{"10.96.0.10", "fd00:10:96::a"}) {
		t.Errorf("DNS has %q", ips)
	}
	if f := before["default/fixed"]; f.ClusterIPs[0] != "10.96.0.99" || f.Ports[0] != "80:30080/TCP" {
		t.Errorf("fixed is %+v", f)
	}
	if ips := before["default/headless"].ClusterIPs; !slices.Equal(ips, []string{"None"}) {
		t.Errorf("headless has %q", ips)
	}
	for _, port := range before["default/nodeport"].Ports {
		if !strings.Contains(port, ":3") {
			t.Errorf("no node port in %s", port)
		}
	}
	// A Service keeps its addresses when others come and go.
	after := snapshot(mustPlan(t, p, doc(append(slices.Delete(slices.Clone(yaml), 1, 2), service("aaa", "ports: [{port: 1}], selector: {a: b}"))...)))
	for name, s := range before {
		if name != "default/plain" && (!slices.Equal(s.ClusterIPs, after[name].ClusterIPs) || !slices.Equal(s.Ports, after[name].Ports)) {
			t.Errorf("%s changed from %+v to %+v", name, s, after[name])
		}
	}
}

// A Service keeps what it was given, even when it no longer asks for it.
func TestServiceKeeps(t *testing.T) {
	p := newPlanner()
	const rest = "selector: {a: b}, ipFamilyPolicy: PreferDualStack"
	mustPlan(t, p, doc(node("n1"), service("s", "type: NodePort, clusterIP: 10.96.0.99, ports: [{port: 80, nodePort: 30080}], "+rest)))
	c := mustPlan(t, p, doc(node("n1"), service("s", "type: NodePort, ports: [{port: 80}], "+rest)))
	for _, s := range ServiceList(c.Snapshot(nil)) {
		if s.Name == "s" && (s.ClusterIPs[0] != "10.96.0.99" || len(s.ClusterIPs) != 2 || s.Ports[0] != "80:30080/TCP") {
			t.Errorf("%+v", s)
		}
	}
	// It loses them only to a Service that asks for them.
	c = mustPlan(t, p, doc(node("n1"), service("s", "type: NodePort, ports: [{port: 80}], "+rest),
		service("thief", "type: NodePort, clusterIP: 10.96.0.99, ports: [{port: 80, nodePort: 30080}], selector: {a: b}")))
	for _, s := range ServiceList(c.Snapshot(nil)) {
		if s.Name == "s" && (s.ClusterIPs[0] == "10.96.0.99" || s.Ports[0] == "80:30080/TCP") {
			t.Errorf("after the theft: %+v", s)
		}
	}
}

func TestServiceDefaults(t *testing.T) {
	c := mustPlan(t, newPlanner(), doc(node("n1"), service("s", "type: NodePort, sessionAffinity: ClientIP, selector: {a: b}, ports: [{port: 80}]")))
	for _, s := range c.Snapshot(nil).Services {
		if s.Name != "s" {
			continue
		}
		spec := s.Spec
		if spec.Ports[0].Protocol != "TCP" || spec.Ports[0].TargetPort.IntVal != 80 || string(spec.ExternalTrafficPolicy) != "Cluster" ||
			string(*spec.InternalTrafficPolicy) != "Cluster" || *spec.SessionAffinityConfig.ClientIP.TimeoutSeconds != 10800 ||
			string(*spec.IPFamilyPolicy) != "SingleStack" || s.UID == "" || s.CreationTimestamp.IsZero() {
			t.Errorf("%+v", s)
		}
		return
	}
	t.Fatal("no service")
}

func TestContainers(t *testing.T) {
	c := mustPlan(t, newPlanner(), doc(node("n1"), `
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {color: red, size: big}`, `
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {key: hidden}`, `
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec:
  subdomain: sub
  dnsConfig: {searches: [example.org], options: [{name: ndots, value: "2"}]}
  containers:
  - name: server
    args: [--name, $(WHO)]
    env:
    - {name: WHO, value: "$(POD_NAME) $$(POD_NAME) $(NOBODY)"}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: s, key: key}}}
    - {name: MAYBE, valueFrom: {configMapKeyRef: {name: none, key: key, optional: true}}}
    envFrom: [{prefix: CM_, configMapRef: {name: cm}}]
    ports: [{containerPort: 80, name: http}, {containerPort: 90, name: tcp-x}, {containerPort: 53, protocol: UDP}]
    readinessProbe: {httpGet: {path: ok, port: http}, periodSeconds: 2, failureThreshold: 1}
    livenessProbe: {tcpSocket: {port: 90}}
  - name: other
    command: [sleep, "1"]
    readinessProbe: {exec: {command: ["true"]}}`))
	p := c.pod(t, "default/p")
	server := p.Containers[0]
	if got, want := strings.Join(server.Argv, " "), "/bin/tapestry-lab serve --http 80 --tcp 90 --udp 53 --name p $(POD_NAME) $(NOBODY)"; got != want {
		t.Errorf("command %q, want %q", got, want)
	}
	for _, want := range []string{
		"PATH=/bin", "POD_NAME=p", "NODE_NAME=n1", "WHO=p $(POD_NAME) $(NOBODY)", "LABEL=x",
		"IPS=10.244.1.10,fd00:10:244:1::a", "SECRET=hidden", "CM_color=red", "CM_size=big",
	} {
		if !slices.Contains(server.Env, want) {
			t.Errorf("no %s in %q", want, server.Env)
		}
	}
	if slices.ContainsFunc(server.Env, func(s string) bool { return strings.HasPrefix(s, "MAYBE=") }) {
		t.Error("an optional key that is missing made a variable")
	}
	if r := server.Readiness; r.HTTP.URL != "http://10.244.1.10:80/ok" || r.Period != 2*time.Second || r.Failure != 1 || r.Timeout != time.Second {
		t.Errorf("readiness %+v", r)
	}
	if l := server.Liveness; l.TCP.String() != "10.244.1.10:90" || l.Period != 10*time.Second || l.Failure != 3 {
		t.Errorf("liveness %+v", l)
	}
	if r := p.Containers[1].Readiness; !slices.Equal(r.Exec, []string{"true"}) {
		t.Errorf("readiness %+v", r)
	}
	if want := "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local example.org\noptions ndots:2\n"; p.ResolvConf != want {
		t.Errorf("resolv.conf %q, want %q", p.ResolvConf, want)
	}
	if want := "10.244.1.10\tp.sub.default.svc.cluster.local\tp\n"; !strings.Contains(p.Hosts, want) {
		t.Errorf("hosts %q, want %q in there", p.Hosts, want)
	}
}

func TestDNSPolicies(t *testing.T) {
	for spec, want := range map[string]string{
		"dnsPolicy: Default, ": "nameserver 203.0.113.53\n",
		"hostNetwork: true, ":  "nameserver 203.0.113.53\n",
		"hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, ":  "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
		"dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1]}, ": "nameserver 192.0.2.1\n",
	} {
		c := mustPlan(t, newPlanner(), doc(node("n1"), simplePod("p", spec)))
		if got := c.pod(t, "default/p").ResolvConf; got != want {
			t.Errorf("%s gives %q, want %q", spec, got, want)
		}
	}
}

// A mistake in one pod does not keep the others from running.
func TestPodProblems(t *testing.T) {
	p := newPlanner()
	yaml := doc(node("n1"), `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: c, command: ["true"], envFrom: [{configMapRef: {name: missing}}]}]}`, simplePod("fine", ""))
	c := mustPlan(t, p, yaml)
	if got := c.pod(t, "default/p").Problem; !strings.Contains(got, "ConfigMap default/missing") {
		t.Errorf("problem %q", got)
	}
	if got := c.pod(t, "default/fine").Problem; got != "" {
		t.Errorf("problem %q", got)
	}
	fixed := mustPlan(t, p, doc(yaml, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: missing}"))
	if now := fixed.pod(t, "default/p"); now.Problem != "" || now.UID == c.pod(t, "default/p").UID {
		t.Errorf("the pod is not made anew when its problem is solved: %+v", now)
	}
}

func TestRefused(t *testing.T) {
	for _, test := range []struct{ name, yaml, want string }{
		{"duplicate address", doc(node("n1"),
			simplePod("a", "nodeName: n1, ", `annotations: {tapestry.dev/pod-ips: "10.244.1.10"}`),
			simplePod("b", "nodeName: n1, ", `annotations: {tapestry.dev/pod-ips: "10.244.1.10"}`)), "10.244.1.10"},
		{"host TAP's address", doc(node("n1"), simplePod("a", "nodeName: n1, ", `annotations: {tapestry.dev/pod-ips: "10.244.1.2"}`)), "10.244.1.2"},
		{"address of another node", doc(node("n1"), node("n2"), simplePod("a", "nodeName: n1, ", `annotations: {tapestry.dev/pod-ips: "10.244.2.10"}`)), "10.244.2.10"},
		{"overlapping ranges", doc(node("n1", "spec: {podCIDRs: [10.1.0.0/16]}"), node("n2", "spec: {podCIDRs: [10.1.1.0/24]}")), "overlap"},
		{"a service without ports", doc(node("n1"), service("s", "selector: {a: b}")), "ports"},
		{"unknown node", doc(node("n1"), simplePod("a", "nodeName: n9, ")), "n9"},
		{"external node", doc("apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {tapestry.dev/external: \"true\"}}", simplePod("a", "nodeName: n1, ")), "external"},
		{"no node fits", doc(node("n1"), simplePod("a", "nodeSelector: {x: y}, ")), "no Node fits"},
		{"clusterIP out of range", doc(node("n1"), service("s", "clusterIP: 192.0.2.1, ports: [{port: 80}]")), "192.0.2.1"},
		{"two node addresses of one", doc(node("n1", "status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}"), node("n2", "status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}")), "192.0.2.1"},
		{"address off the underlay", doc(node("n1", "status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}"), node("n2", "status: {addresses: [{type: InternalIP, address: 198.51.100.1}]}")), "198.51.100.1"},
		{"probe of no port", doc(node("n1"), "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, readinessProbe: {httpGet: {port: web}}}]}"), "web"},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := codec.Decode("lab.yaml", []byte(test.yaml))
			if err == nil {
				_, err = newPlanner().Plan(objects)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	c := mustPlan(t, newPlanner(), doc(node("n1"), simplePod("a", "", "labels: {app: x}"), simplePod("b", "", "labels: {app: x}"),
		service("s", "selector: {app: x}, ports: [{port: 80}]")))
	ready := map[string]kubelet.Status{c.pod(t, "default/a").UID: {Phase: kubelet.Running, Initialized: true, Ready: true}}
	for _, s := range ServiceList(c.Snapshot(ready)) {
		if s.Name == "s" && (s.Ready != 1 || s.Endpoints != 2) {
			t.Errorf("%d of %d endpoints are ready, want 1 of 2", s.Ready, s.Endpoints)
		}
	}
}

func TestMTU(t *testing.T) {
	c := mustPlan(t, newPlanner(), node("n1"))
	if got := c.MTU(1500); got != 1420 {
		t.Errorf("pods get %d over 1500, want 1420: 60 for WireGuard and 20 for IP-in-IP less", got)
	}
}

// The lab plays the controller that records where an Ingress is served.
func TestIngressStatus(t *testing.T) {
	ingress := func(name, class, spec string) string {
		return "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: " + name + "}, spec: {ingressClassName: " + class + ", " + spec + "}}"
	}
	c := mustPlan(t, newPlanner(), doc(
		node("n1"), service("web", "ports: [{port: 80}], selector: {a: b}"),
		ingress("ours", "tapestry", "rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]"),
		ingress("theirs", "nginx", "defaultBackend: {service: {name: web, port: {number: 80}}}"),
	))
	var got []string
	for _, i := range IngressList(c.Snapshot(nil)) {
		got = append(got, fmt.Sprintf("%s %s %s", i.Name, i.Hosts, i.Addrs))
	}
	var addrs []string
	for _, a := range c.Nodes[0].Addrs {
		addrs = append(addrs, a.String())
	}
	if want := []string{fmt.Sprintf("ours [a.example] %s", addrs), "theirs [*] []"}; len(addrs) == 0 || !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
