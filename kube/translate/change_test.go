package translate_test

import (
	"fmt"
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/translate"
)

// TestServiceChangesType changes the type of a Service back and forth. A Service must have nothing of its former
// type, though fields and EndpointSlices of it are still there (kubernetes/kubernetes#105986). One Translator sees
// all states.
func TestServiceChangesType(t *testing.T) {
	const rest = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.7], hostname: w, nodeName: n1, targetRef: {kind: Pod, uid: u1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
`
	cluster := "cluster [10.96.5.5]:80 node port 0, 1 endpoint; name [10.96.5.5], 1 of its endpoints"
	states := []struct{ spec, want string }{
		{"{clusterIP: 10.96.5.5, ports: [{name: http, port: 80}]}", cluster},
		{"{type: ExternalName, externalName: db.example.com, clusterIP: 10.96.5.5, clusterIPs: [10.96.5.5], externalIPs: [192.0.2.7], selector: {app: web}, ports: [{name: http, port: 80, nodePort: 30080}]}",
			"name db.example.com"},
		{"{type: NodePort, clusterIP: 10.96.5.5, ports: [{name: http, port: 80, nodePort: 30080}]}", strings.Replace(cluster, "port 0", "port 30080", 1)},
		{"{clusterIP: 10.96.5.5, externalName: db.example.com, ports: [{name: http, port: 80, nodePort: 30080}]}", cluster},
		{"{clusterIP: None, ports: [{name: http, port: 80}]}", "cluster []:80 node port 0, 1 endpoint; name [], 1 of its endpoints"},
		{"{clusterIP: 10.96.5.5, ports: [{name: http, port: 80}]}", cluster},
	}
	var m translate.Translator
	for i, state := range states {
		objs, err := codec.Decode("in.yaml", []byte(rest+"spec: "+state.spec+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		r := m.Translate(objs, translate.Options{Node: "n1", ExternalIPs: true})
		var got []string
		for _, s := range r.Services.Services.All() {
			got = append(got, fmt.Sprintf("cluster %v:%d node port %d, %d endpoint", s.ClusterIPs, s.Ports[0].Port, s.Ports[0].NodePort, len(s.Endpoints)))
		}
		for _, s := range r.DNS.Services {
			if s.ExternalName != "" {
				got = append(got, "name "+s.ExternalName)
				if len(s.ClusterIPs)+len(s.Ports)+len(s.Endpoints) > 0 {
					t.Errorf("state %d: an ExternalName has %+v", i, s)
				}
				continue
			}
			got = append(got, fmt.Sprintf("name %v, %d of its endpoints", s.ClusterIPs, len(s.Endpoints)))
		}
		if text := strings.Join(got, "; "); text != state.want {
			t.Errorf("state %d: got %s, want %s", i, text, state.want)
		}
	}
}
