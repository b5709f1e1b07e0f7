package controller_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/controller"
)

// edges is a cluster of three nodes of both families, whose pool of nodes has two of them.
const edges = `
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {edge: "yes"}}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: "2001:db8:9::1"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {edge: "yes", kubernetes.io/hostname: n2}}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}, {type: InternalIP, address: "2001:db8:9::2"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: inner}, status: {addresses: [{type: InternalIP, address: 192.168.0.3}]}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: nodes}, spec: {nodes: {matchLabels: {edge: "yes"}}}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: own}, spec: {addresses: [192.0.2.0/24], autoAssign: false}}
`

// service is a Service of those nodes with slices of its endpoints.
func service(spec string, families string, slices ...string) string {
	text := edges + fmt.Sprintf(`---
{apiVersion: v1, kind: Service, metadata: {namespace: default, name: web}, spec: {type: LoadBalancer, ipFamilies: [%s], ports: [{port: 80}]%s}}
`, families, spec)
	for i, s := range slices {
		family, endpoints, _ := strings.Cut(s, " ")
		text += fmt.Sprintf(`---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: default, name: web-%d, labels: {kubernetes.io/service-name: web}}, addressType: %s, endpoints: [%s], ports: [{port: 80}]}
`, i, family, endpoints)
	}
	return text
}

// endpoint is one of a node.
func endpoint(node, conditions string) string {
	return fmt.Sprintf(`{addresses: [10.244.0.9], nodeName: %s, conditions: {%s}}`, node, conditions)
}

// The status of a local Service at nodes' addresses lists the nodes at which clients are served.
func TestLocalAtNodes(t *testing.T) {
	const local, ready, unready, ending = ", externalTrafficPolicy: Local", "ready: true", "ready: false", "ready: false, serving: true, terminating: true"
	const both = "192.168.0.1 192.168.0.2"
	six := func(node, conditions string) string {
		return strings.Replace(endpoint(node, conditions), "10.244.0.9", `"fd00::9"`, 1)
	}
	for name, tc := range map[string]struct {
		text, want string
	}{
		"everywhere":                   {service("", "IPv4", "IPv4 "+endpoint("n1", ready)), both},
		"one":                          {service(local, "IPv4", "IPv4 "+endpoint("n1", ready)), "192.168.0.1"},
		"the other":                    {service(local, "IPv4", "IPv4 "+endpoint("n2", ready)), "192.168.0.2"},
		"each":                         {service(local, "IPv4", "IPv4 "+endpoint("n2", ready)+", "+endpoint("n1", ready)), both},
		"in two slices":                {service(local, "IPv4", "IPv4 "+endpoint("n2", ready), "IPv4 "+endpoint("n1", ready)), both},
		"not said whether it is ready": {service(local, "IPv4", "IPv4 "+endpoint("n2", "")), "192.168.0.2"},
		"not ready":                    {service(local, "IPv4", "IPv4 "+endpoint("n1", unready)+", "+endpoint("n2", ready)), "192.168.0.2"},
		"ends, another is ready":       {service(local, "IPv4", "IPv4 "+endpoint("n1", ending)+", "+endpoint("n2", ready)), "192.168.0.2"},
		"ends, none is ready":          {service(local, "IPv4", "IPv4 "+endpoint("n1", ending)+", "+endpoint("n2", unready)), "192.168.0.1"},
		"ended":                        {service(local, "IPv4", "IPv4 "+endpoint("n1", "ready: false, serving: false, terminating: true")), both},
		"none is ready":                {service(local, "IPv4", "IPv4 "+endpoint("n1", unready)), both},
		"no endpoints":                 {service(local, "IPv4"), both},
		"on a node out of the pool":    {service(local, "IPv4", "IPv4 "+endpoint("inner", ready)), both},
		"on no node":                   {service(local, "IPv4", `IPv4 {addresses: [203.0.113.9]}`), both},
		"on a node that is not known":  {service(local, "IPv4", "IPv4 "+endpoint("gone", ready)+", "+endpoint("n1", ready)), "192.168.0.1"},
		"both families":                {service(local, "IPv4, IPv6", "IPv4 "+endpoint("n1", ready), "IPv6 "+six("n2", ready)), "192.168.0.1 2001:db8:9::2"},
		"of one family none":           {service(local, "IPv4, IPv6", "IPv4 "+endpoint("n1", ready)), "192.168.0.1 2001:db8:9::1 2001:db8:9::2"},
		"one node is asked for":        {service(local+", loadBalancerIP: 192.168.0.2", "IPv4", "IPv4 "+endpoint("n1", ready)), "192.168.0.2"},
		"an address of its own":        {service(local+", loadBalancerIP: 192.0.2.9", "IPv4", "IPv4 "+endpoint("n1", ready)), "192.0.2.9"},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := codec.Decode("x.yaml", []byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			o := controller.Options{Default: true, Now: time.Unix(1000, 0)}
			out, problems := controller.LoadBalancers(in, o)
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			if got := points(out); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if again, _ := controller.LoadBalancers(out, o); again.Services[0] != out.Services[0] {
				t.Errorf("it is another without a change: %s", points(again))
			}
		})
	}
}

func points(objs kube.Objects) string {
	var list []string
	for _, in := range objs.Services[0].Status.LoadBalancer.Ingress {
		list = append(list, in.IP)
	}
	return strings.Join(list, " ")
}

// The list follows the endpoints, and names the ports wherever they are. The ports of the nodes that it leaves out are
// the Service's all the same: another one does not get them, though it is the older one and of another pool.
func TestLocalMoves(t *testing.T) {
	o := controller.Options{Default: true, Now: time.Unix(1000, 0)}
	at := func(node string) kube.Objects {
		in, err := codec.Decode("x.yaml", []byte(service(", externalTrafficPolicy: Local", "IPv4", "IPv4 "+endpoint(node, "ready: true"))+`---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: second}, spec: {priority: 1, nodes: {matchLabels: {kubernetes.io/hostname: n2}}, serviceSelector: {matchLabels: {a: b}}}}
`))
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	objs := at("n1")
	objs.Services[0].CreationTimestamp.Time = time.Unix(500, 0)
	objs, _ = controller.LoadBalancers(objs, o)
	for _, node := range []string{"n1", "n2", "n1", "n2"} {
		next := at(node)
		next.Services = objs.Services
		rival := next.Services[0].DeepCopy()
		rival.Name, rival.Labels = "rival", map[string]string{"a": "b"}
		rival.Status.LoadBalancer.Ingress, rival.Status.Conditions, rival.Spec.ExternalTrafficPolicy = nil, nil, ""
		rival.CreationTimestamp.Time = time.Unix(400, 0)
		next.Services = append(next.Services[:1:1], rival)
		objs, _ = controller.LoadBalancers(next, o)
		want := map[string]string{"n1": "192.168.0.1", "n2": "192.168.0.2"}[node]
		if got := points(objs); got != want {
			t.Errorf("on %s: %s, want %s", node, got, want)
		}
		if got := statusOf(t, objs, "rival"); !strings.Contains(got, "AddressTaken") {
			t.Errorf("the other has %s", got)
		}
		if got := statusOf(t, objs, "web"); !strings.Contains(got, `"ports":[{"port":80`) || !strings.Contains(got, "those of its nodes that have endpoints") {
			t.Errorf("told is %s", got)
		}
	}
}

// A node that its status names leaves the pool. The Service goes on at the pool's other nodes, though a pool with
// addresses of its own would come first for a new one.
func TestLocalLeavesPool(t *testing.T) {
	o := controller.Options{Default: true, Now: time.Unix(1000, 0)}
	at := func(node string) kube.Objects {
		in, err := codec.Decode("x.yaml", []byte(service(", externalTrafficPolicy: Local", "IPv4", "IPv4 "+endpoint(node, "ready: true"))))
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	objs, _ := controller.LoadBalancers(at("n2"), o)
	if got := points(objs); got != "192.168.0.2" {
		t.Fatalf("%s, want n2's address", got)
	}
	next := at("n1")
	next.Services = objs.Services
	for _, n := range next.Nodes {
		if n.Name == "n2" {
			n.Labels = nil
		}
	}
	for _, p := range next.AddressPools {
		if p.Name == "own" {
			p.Spec.AutoAssign = nil
		} else {
			p.Spec.Priority = 1
		}
	}
	out, _ := controller.LoadBalancers(next, o)
	if got := points(out); got != "192.168.0.1" {
		t.Errorf("%s, want the address of the node that is left", got)
	}
}

// A node that lists another one's address takes no Service from that one, and gives it none.
func TestLocalWithSharedAddress(t *testing.T) {
	for _, thief := range []string{"a0", "z9"} { // the list is sorted by name
		for at, want := range map[string]string{"n1": "192.168.0.1", "n2": "192.168.0.2"} {
			text := service(", externalTrafficPolicy: Local", "IPv4", "IPv4 "+endpoint(at, "ready: true")) +
				fmt.Sprintf(`---
{apiVersion: v1, kind: Node, metadata: {name: %s}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: "::ffff:192.168.0.2"}]}}
`, thief)
			in, err := codec.Decode("x.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			out, _ := controller.LoadBalancers(in, controller.Options{Default: true, Now: time.Unix(1000, 0)})
			if got := points(out); got != want {
				t.Errorf("%s lists the others' addresses, and the endpoint is on %s: %s, want %s", thief, at, got, want)
			}
		}
	}
}
