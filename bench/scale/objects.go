package scale

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// The cluster of the suites. Its Services lead to pods of another node, which is known and never answers. One Service,
// the target, leads to a pod of this node.
const (
	nodeName    = "node-1"
	nodeAddress = "198.18.0.1"
	podRange    = "10.244.1.0/24"
	nodesYAML   = `apiVersion: v1
kind: Node
metadata:
  name: node-1
spec:
  podCIDRs:
  - 10.244.1.0/24
status:
  addresses:
  - type: InternalIP
    address: 198.18.0.1
---
apiVersion: v1
kind: Node
metadata:
  name: node-2
spec:
  podCIDRs:
  - 10.128.0.0/10
status:
  addresses:
  - type: InternalIP
    address: 198.18.0.2
`
)

const (
	targetPort = 80   // of the target Service, UDP
	serverPort = 9000 // of the pods behind it
	targetFile = "zz-target.yaml"
)

// targetAddr is the ClusterIP of the target Service.
var targetAddr = netip.MustParseAddr("10.96.255.1")

// serviceYAML and sliceYAML have the form that kubectl get -o yaml prints, without managedFields.
const serviceYAML = `apiVersion: v1
kind: Service
metadata:
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels:
    app: %[1]s
  name: %[1]s
  namespace: default
  resourceVersion: "%[2]d"
  uid: 11111111-2222-3333-4444-%012[2]d
spec:
  clusterIP: %[3]s
  clusterIPs:
  - %[3]s
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: main
    port: 80
    protocol: %[4]s
    targetPort: 9000
  selector:
    app: %[1]s
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {}
---
`

const sliceYAML = `addressType: IPv4
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  creationTimestamp: "2026-01-01T00:00:00Z"
  generateName: %[1]s-
  generation: 7
  labels:
    app: %[1]s
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: %[1]s
  name: %[1]s-x7k2p
  namespace: default
  ownerReferences:
  - apiVersion: v1
    blockOwnerDeletion: true
    controller: true
    kind: Service
    name: %[1]s
    uid: 11111111-2222-3333-4444-%012[2]d
  resourceVersion: "%[2]d"
  uid: 55555555-2222-3333-4444-%012[2]d
ports:
- name: main
  port: 9000
  protocol: %[3]s
endpoints:
`

const endpointYAML = `- addresses:
  - %[1]s
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: %[2]s
  targetRef:
    kind: Pod
    name: pod-%[3]d
    namespace: default
    uid: 99999999-2222-3333-4444-%012[3]d
`

// writeCluster fills dir with the Nodes and with services Services, each with its EndpointSlice of endpoints endpoints
// in one file.
func writeCluster(dir string, services, endpoints int) error {
	if err := os.WriteFile(filepath.Join(dir, "nodes.yaml"), []byte(nodesYAML), 0o644); err != nil {
		return err
	}
	clusterIP, pod := netip.MustParseAddr("10.96.1.0"), netip.MustParseAddr("10.128.0.10")
	for i := range services {
		name := fmt.Sprintf("svc-%05d", i)
		var b strings.Builder
		fmt.Fprintf(&b, serviceYAML, name, i, clusterIP, "TCP")
		fmt.Fprintf(&b, sliceYAML, name, i, "TCP")
		for j := range endpoints {
			fmt.Fprintf(&b, endpointYAML, pod, "node-2", i*endpoints+j)
			pod = pod.Next()
		}
		clusterIP = clusterIP.Next()
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// target returns the file of the target Service, which leads to backend.
func target(backend netip.Addr) []byte {
	const number = 999_999_999
	var b strings.Builder
	fmt.Fprintf(&b, serviceYAML, "target", number, targetAddr, "UDP")
	fmt.Fprintf(&b, sliceYAML, "target", number, "UDP")
	last := backend.As4()[3]
	fmt.Fprintf(&b, endpointYAML, backend, nodeName, int(last)+number)
	return []byte(b.String())
}

// put prepares the replacement of file name in dir, as tools that write configurations do: readers see the old file or
// the new one. The caller does the rename, since its time may count from there.
func put(dir, name string, data []byte) (rename func() error, err error) {
	next := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(next, data, 0o644); err != nil {
		return nil, err
	}
	return func() error { return os.Rename(next, filepath.Join(dir, name)) }, nil
}
