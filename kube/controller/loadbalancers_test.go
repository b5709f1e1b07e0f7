package controller_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/controller"
)

const cluster = `
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: own}, spec: {addresses: [192.0.2.0/30, 10.96.0.7]}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: nodes}, spec: {nodes: {}, autoAssign: false}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: default, name: web, generation: 3}, spec: {type: LoadBalancer, ipFamilies: [IPv4], ports: [{port: 80}]}}
---
apiVersion: v1
kind: Service
metadata: {namespace: default, name: edge, annotations: {tapestry.dev/address-pool: nodes, tapestry.dev/proxy-protocol: v2}}
spec: {type: LoadBalancer, ipFamilies: [IPv4], ports: [{port: 80, protocol: TCP}, {port: 81, protocol: SCTP}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: default, name: full}, spec: {type: LoadBalancer, ipFamilies: [IPv6], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: default, name: plain}, spec: {ports: [{port: 80}]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}}
`

// TestLoadBalancers checks what is written into the status of Services and pools, and that it stays as it is when
// nothing changes.
func TestLoadBalancers(t *testing.T) {
	in, err := codec.Decode("x.yaml", []byte(cluster))
	if err != nil {
		t.Fatal(err)
	}
	before := allJSON(t, in)
	first := controller.Options{Default: true, Now: time.Unix(1000, 0).UTC()}
	out, problems := controller.LoadBalancers(in, first)
	if allJSON(t, in) != before {
		t.Error("the input has been changed")
	}
	if len(problems) != 2 || !strings.Contains(problems[0].String(), "overlaps 10.96.0.0/16") || !strings.Contains(problems[1].String(), "no address is left") {
		t.Errorf("problems: %v", problems)
	}
	const at = `"lastTransitionTime":"1970-01-01T00:16:40Z"`
	for name, want := range map[string]string{
		"web": `{"loadBalancer":{"ingress":[{"ip":"192.0.2.0","ipMode":"VIP"}]},"conditions":[` +
			`{"type":"tapestry.dev/LoadBalancer","status":"True","observedGeneration":3,` + at + `,"reason":"Assigned","message":"from AddressPool own"}]}`,
		"edge": `{"loadBalancer":{"ingress":[{"ip":"192.168.0.1","ipMode":"Proxy","ports":[{"port":80,"protocol":"TCP"},{"port":81,"protocol":"SCTP","error":"tapestry.dev/Unsupported"}]}]},"conditions":[` +
			`{"type":"tapestry.dev/LoadBalancer","status":"True",` + at + `,"reason":"OnNodes","message":"from AddressPool nodes"},` +
			`{"type":"tapestry.dev/Unsupported","status":"True",` + at + `,"reason":"SCTP","message":"SCTP ports are not served at addresses of nodes, since hosts' sockets do not pass SCTP on: use an AddressPool with addresses of its own"}]}`,
		"full": `{"loadBalancer":{},"conditions":[{"type":"tapestry.dev/LoadBalancer","status":"False",` + at +
			`,"reason":"PoolExhausted","message":"no address is left for it in AddressPool \"own\": remove Services, or add addresses"}]}`,
		"plain": `{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}`,
	} {
		if got := statusOf(t, out, name); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
	}
	pools, _ := json.Marshal([]any{out.AddressPools[0].Status, out.AddressPools[1].Status})
	for _, part := range []string{`"assigned":1,"free":1`, `"assigned":1,"free":3`, `"status":"False","lastTransitionTime":"1970-01-01T00:16:40Z","reason":"Unusable"`} {
		if !strings.Contains(string(pools), part) {
			t.Errorf("the pools' status is %s, without %s", pools, part)
		}
	}

	for _, s := range out.Services {
		if got, want := slices.Contains(s.Finalizers, controller.Finalizer), s.Name != "plain"; got != want {
			t.Errorf("%s has the finalizer: %t, want %t", s.Name, got, want)
		}
	}

	later := controller.Options{Default: true, Now: time.Unix(2000, 0).UTC()}
	again, _ := controller.LoadBalancers(out, later)
	for i := range out.Services {
		if again.Services[i] != out.Services[i] {
			t.Errorf("Service %s is another without a change", out.Services[i].Name)
		}
	}
	for i := range out.AddressPools {
		if again.AddressPools[i] != out.AddressPools[i] {
			t.Errorf("AddressPool %s is another without a change", out.AddressPools[i].Name)
		}
	}

	gone := again.Map(func(obj kube.Object) kube.Object {
		s, ok := obj.(*corev1.Service)
		if !ok {
			return obj
		}
		s = s.DeepCopy()
		s.Spec.Type = corev1.ServiceTypeClusterIP
		return s
	})
	gone, _ = controller.LoadBalancers(gone, later)
	for _, s := range gone.Services {
		if len(s.Finalizers) > 0 && s.Name != "full" {
			t.Errorf("%s, no load balancer any longer, has the finalizers %q", s.Name, s.Finalizers)
		}
	}
	for name, want := range map[string]string{"web": `{"loadBalancer":{}}`, "edge": `{"loadBalancer":{}}`, "plain": `{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}`} {
		if got := statusOf(t, gone, name); got != want {
			t.Errorf("%s, no load balancer any longer: %s, want %s", name, got, want)
		}
	}
}

// Who may write a Service takes no port from another at the addresses of nodes, be it the older one: what a Service has
// there is in its status.
func TestNobodyTakesAPort(t *testing.T) {
	in, err := codec.Decode("x.yaml", []byte(`
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: 192.168.0.2}]}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: nodes}, spec: {nodes: {}}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: old, creationTimestamp: "2020-01-01T00:00:00Z"}, spec: {type: LoadBalancer, ipFamilies: [IPv4], ports: [{port: 80, protocol: TCP}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: b, name: new, creationTimestamp: "2021-01-01T00:00:00Z"}, spec: {type: LoadBalancer, ipFamilies: [IPv4], ports: [{port: 443, protocol: TCP}]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	o := controller.Options{Default: true, Now: time.Unix(1000, 0).UTC()}
	out, _ := controller.LoadBalancers(in, o)
	const kept = `"loadBalancer":{"ingress":[{"ip":"192.168.0.1","ipMode":"VIP","ports":[{"port":443,"protocol":"TCP"}]},{"ip":"192.168.0.2","ipMode":"VIP"}]}`
	if got := statusOf(t, out, "new"); !strings.Contains(got, kept) {
		t.Errorf("at first: %s, want %s", got, kept)
	}
	for i, s := range out.Services {
		if s.Name == "old" {
			out.Services[i] = s.DeepCopy()
			out.Services[i].Spec.Ports[0].Port = 443
		}
	}
	for range 3 {
		out, _ = controller.LoadBalancers(out, o)
		if got := statusOf(t, out, "new"); !strings.Contains(got, kept) {
			t.Errorf("after the other wants its port: %s, want %s", got, kept)
		}
		if got, want := statusOf(t, out, "old"), "Service b/new has one of its ports"; !strings.Contains(got, want) {
			t.Errorf("the other: %s, want %s", got, want)
		}
	}
}

// A Service of our class that is deleted is let go, whatever others have made of its status.
func TestFinalizerAlone(t *testing.T) {
	service := func(name, spec string) string {
		return `{apiVersion: v1, kind: Service, metadata: {namespace: d, name: ` + name + `, deletionTimestamp: "2020-01-01T00:00:00Z", finalizers: [` + controller.Finalizer +
			`]}, spec: {type: LoadBalancer, ports: [{port: 80}]` + spec + `}}`
	}
	in, err := codec.Decode("x.yaml", []byte(service("ours", ", loadBalancerClass: tapestry.dev/load-balancer")+"\n---\n"+service("a-clouds", "")))
	if err != nil {
		t.Fatal(err)
	}
	out, _ := controller.LoadBalancers(in, controller.Options{Default: true, Now: time.Unix(1000, 0).UTC()})
	for _, s := range out.Services {
		if got, want := len(s.Finalizers), map[string]int{"ours": 0, "a-clouds": 1}[s.Name]; got != want {
			t.Errorf("%s has %d finalizers, want %d", s.Name, got, want)
		}
	}
}

func statusOf(t *testing.T, objs kube.Objects, name string) string {
	t.Helper()
	for _, s := range objs.Services {
		if s.Name == name {
			data, err := json.Marshal(s.Status)
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
	}
	t.Fatalf("there is no Service %s", name)
	return ""
}
