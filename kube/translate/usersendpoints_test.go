package translate

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube/codec"
)

// TestEndpointsOfUsers: a user writes an EndpointSlice by hand for a Service without a selector. What the API server's
// validation lets pass is served, pods of other namespaces and nodes among it, and all else is told with what is wrong.
// Addresses of Services pass that validation, too, but lead back to a translation, so they are told as well.
func TestEndpointsOfUsers(t *testing.T) {
	const cluster = `
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24, "fd00:10:244:2::/64"]}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: victim, uid: u}, spec: {nodeName: n1}, status: {podIP: 10.244.1.7, podIPs: [{ip: 10.244.1.7}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: victim}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: tenant}, spec: {clusterIP: 10.96.0.7, type: NodePort, ports: [{port: 80, nodePort: 30080}]}}
---
`
	for _, tt := range []struct {
		address string
		port    string
		why     string // "" when it is served
	}{
		{"10.244.1.7", "5432", ""}, // another namespace's pod
		{"10.244.2.9", "80", ""},   // nobody's yet
		{"192.0.2.1", "9100", ""},  // a node
		{"198.51.100.7", "443", ""},
		{"192.0.2.2", "30080", "192.0.2.2 30080/TCP is the node port of Service tenant/web"},
		{"10.96.0.9", "80", "10.96.0.9 is the cluster address of Service victim/db"},
		{"10.96.0.7", "80", "10.96.0.7 is the cluster address of Service tenant/web"},
		{"10.96.44.44", "80", "10.96.44.44 lies in the service range"},
		{"127.0.0.1", "2379", "127.0.0.1 is a loopback address"},
		{"127.9.9.9", "80", "127.9.9.9 is a loopback address"},
		{"169.254.169.254", "80", "169.254.169.254 is a link-local address"},
		{"224.0.0.1", "80", "224.0.0.1 is a multicast address"},
		{"239.1.2.3", "80", "239.1.2.3 is a multicast address"},
		{"0.0.0.0", "80", "0.0.0.0 is the unspecified address"},
		{"255.255.255.255", "80", "255.255.255.255 is a reserved address"},
		{"::1", "80", "::1 is a loopback address"},
		{"fe80::1", "80", "fe80::1 is a link-local address"},
		{"ff02::1", "80", "ff02::1 is a multicast address"},
		{"::ffff:127.0.0.1", "80", `"::ffff:127.0.0.1" is no IPv6 address`},
		{"64:ff9b::7f00:1", "80", "64:ff9b::7f00:1 is a loopback address"},
		{"fd00:10:244:1::7", "80", ""},
	} {
		t.Run(tt.address+" "+tt.port, func(t *testing.T) {
			family := "IPv4"
			if strings.Contains(tt.address, ":") {
				family = "IPv6"
			}
			objs, err := codec.Decode("in.yaml", []byte(cluster+`
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-mine, namespace: tenant, labels: {kubernetes.io/service-name: web}},
addressType: `+family+`, ports: [{port: `+tt.port+`}], endpoints: [{addresses: ["`+tt.address+`"]}]}
`))
			if err != nil {
				t.Fatal(err)
			}
			r := Translate(objs, Options{Node: "n1"})
			served := 0
			for _, s := range r.Services.Services.All() {
				if s.Name == "web" {
					served = len(s.Endpoints)
				}
			}
			var said []string
			for _, p := range r.Problems {
				said = append(said, p.Object.String()+": "+p.Message)
			}
			text := strings.Join(said, "\n")
			if (served == 1) != (tt.why == "") || !strings.Contains(text, tt.why) || tt.why == "" && text != "" {
				t.Errorf("%d endpoints are served, and it is told:\n%s\nwant %q", served, text, tt.why)
			}
		})
	}
}
