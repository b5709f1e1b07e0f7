package manifests

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/kube/codec"
)

const goodCluster = `apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.244.2.0/24]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}, annotations: {tapestry.dev/pod-ips: "10.244.1.5,fd00:10:244:1::5"}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

func TestValidate(t *testing.T) {
	pod := func(name, ips, spec string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", annotations: {tapestry.dev/pod-ips: \"" + ips + "\"}}\nspec: {" + spec + "}\n"
	}
	service := func(spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {" + spec + "}\n"
	}
	const ips = "metadata.annotations[tapestry.dev/pod-ips]: "
	for name, test := range map[string]struct {
		in   string
		want []string
	}{
		"good": {"", nil},
		"address of another pod": {pod("b", "10.244.1.5", "nodeName: n1"), []string{
			"error: lab.yaml:12: Pod default/web: " + ips + "10.244.1.5 is the address of Pod default/b already: choose another"}},
		"outside of the node's range": {pod("b", "10.244.2.5", "nodeName: n1"), []string{
			"error: lab.yaml:22: Pod default/b: " + ips + "10.244.2.5 is outside of the podCIDRs of Node n1 (10.244.1.0/24, fd00:10:244:1::/64): choose an address inside of them"}},
		"inside of some node's range": {pod("b", "10.244.2.5", ""), nil},
		"outside of all ranges": {pod("b", "10.9.9.9", ""), []string{
			"error: lab.yaml:22: Pod default/b: " + ips + "10.9.9.9 is outside of the podCIDRs of any Node (10.244.1.0/24, fd00:10:244:1::/64, 10.244.2.0/24): choose an address inside of them"}},
		"a host pod has none": {pod("b", "10.9.9.9", "hostNetwork: true"), nil},
		"the stack's": {pod("b", "10.244.1.1", "nodeName: n1"), []string{
			"error: lab.yaml:22: Pod default/b: " + ips + "10.244.1.1 is kept for Node n1 itself, like the ends and the first two addresses of every podCIDR: choose another"}},
		"the broadcast address": {pod("b", "10.244.1.255", "nodeName: n1"), []string{
			"error: lab.yaml:22: Pod default/b: " + ips + "10.244.1.255 is kept for Node n1 itself, like the ends and the first two addresses of every podCIDR: choose another"}},
		"v6 has no broadcast address": {pod("b", "fd00:10:244:1:ffff:ffff:ffff:ffff", "nodeName: n1"), nil},
		"two of one family": {pod("b", "10.244.1.6,10.244.1.7", "nodeName: n1"), []string{
			"error: lab.yaml:22: Pod default/b: " + ips + "10.244.1.7 is a second address of its family: a pod has at most one IPv4 and one IPv6 address"}},
		"no address": {pod("b", "x", "nodeName: n1"), []string{
			`error: lab.yaml:22: Pod default/b: ` + ips + `"x" is not an address: expected one like 10.244.1.5`}},
		"unknown node": {pod("b", "", "nodeName: n9"), []string{
			"error: lab.yaml:22: Pod default/b: spec.nodeName: there is no Node n9: add it, or remove the field to let any node run the pod"}},
		"a node without agent": {"apiVersion: v1\nkind: Node\nmetadata: {name: x, labels: {tapestry.dev/external: \"true\"}}\n---\n" + pod("b", "", "nodeName: x"), []string{
			"error: lab.yaml:26: Pod default/b: spec.nodeName: Node x has the label tapestry.dev/external, so that no pod can be started there: choose another node"}},
		"overlapping podCIDRs": {"apiVersion: v1\nkind: Node\nmetadata: {name: n3}\nspec: {podCIDRs: [10.244.0.0/16]}\n", []string{
			"error: lab.yaml:22: Node n3: spec.podCIDRs[0]: 10.244.0.0/16 overlaps 10.244.1.0/24 of Node n1: give every node a range of its own",
			"warning: lab.yaml:22: Node n3: spec.podCIDRs: the node has no range for its pods, so that none can run there: add one like 10.244.1.0/24"}},
		"podCIDR in the service range": {"apiVersion: v1\nkind: Node\nmetadata: {name: n3}\nspec: {podCIDRs: [10.96.3.0/24]}\n", []string{
			"error: lab.yaml:22: Node n3: spec.podCIDRs[0]: 10.96.3.0/24 overlaps the service range 10.96.0.0/16: choose another range"}},
		"node address in a pod range": {"apiVersion: v1\nkind: Node\nmetadata: {name: n3}\nspec: {podCIDRs: [10.244.3.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 10.244.2.7}]}\n", []string{
			"error: lab.yaml:22: Node n3: status.addresses[0].address: 10.244.2.7 is inside of 10.244.2.0/24, the pod range of Node n2: a node's address must lie outside of the cluster's ranges"}},
		"no ports": {service("clusterIP: 10.96.0.5"), []string{
			"error: lab.yaml:22: Service default/s: spec.ports: is empty: add a port, or make the Service headless (clusterIP: None)"}},
		"headless without ports":      {service("clusterIP: None"), nil},
		"external name without ports": {service("type: ExternalName, externalName: a.example.com"), nil},
		"node port twice": {service("type: NodePort, ports: [{port: 80, nodePort: 30080}]") + "---\n" +
			strings.Replace(service("type: NodePort, ports: [{port: 80, nodePort: 30080}]"), "name: s", "name: t", 1), []string{
			"error: lab.yaml:27: Service default/t: spec.ports[0].nodePort: 30080/TCP belongs to Service default/s already: choose another"}},
		"cluster address twice": {service("clusterIP: 10.96.0.5, ports: [{port: 1}]") + "---\n" +
			strings.Replace(service("clusterIP: 10.96.0.5, ports: [{port: 1}]"), "name: s", "name: t", 1), []string{
			"error: lab.yaml:27: Service default/t: spec.clusterIP: 10.96.0.5 belongs to Service default/s already: choose another address"}},
		"cluster address out of range": {service("clusterIP: 10.97.0.5, ports: [{port: 1}]"), []string{
			"error: lab.yaml:22: Service default/s: spec.clusterIP: 10.97.0.5 is outside of the service ranges (10.96.0.0/16, fd00:10:96::/112): choose an address inside, or remove the field to be given one"}},
		"selector of nobody": {service("selector: {app: wbe}, ports: [{port: 1}]"), []string{
			"warning: lab.yaml:22: Service default/s: spec.selector: matches no Pod in namespace default, so that connections are refused: compare it with the labels of the pods"}},
		"ingress without service": {"apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\nspec: {defaultBackend: {service: {name: x, port: {number: 80}}}}\n", []string{
			"warning: lab.yaml:22: Ingress default/i: spec.defaultBackend.service.name: there is no Service default/x: requests are answered 503 until there is"}},
		"secret without key": {"apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: t}\nstringData: {tls.crt: x}\n", []string{
			"error: lab.yaml:22: Secret default/t: data[tls.key]: is missing: a TLS Secret has tls.crt and tls.key, both in PEM"}},
		"bad name": {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n", []string{
			`error: lab.yaml:22: Namespace a.b: metadata.name: "a.b" is not a valid name: must not contain dots`}},
	} {
		t.Run(name, func(t *testing.T) {
			objs, err := codec.Decode("lab.yaml", []byte(goodCluster+"---\n"+test.in))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range Validate(objs) {
				got = append(got, string(p.Severity)+": "+p.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
