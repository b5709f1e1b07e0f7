package codec

import (
	"bytes"
	"fmt"
	"testing"
)

// sliceDocument returns an EndpointSlice of ten endpoints as kubectl prints it.
func sliceDocument() []byte {
	var b bytes.Buffer
	b.WriteString(`addressType: IPv4
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  creationTimestamp: "2026-01-01T00:00:00Z"
  generateName: web-
  generation: 7
  labels:
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: web
  name: web-x7k2p
  namespace: default
  ownerReferences:
  - apiVersion: v1
    blockOwnerDeletion: true
    controller: true
    kind: Service
    name: web
    uid: 11111111-2222-3333-4444-000000000001
  resourceVersion: "4711"
  uid: 55555555-2222-3333-4444-000000000002
ports:
- name: main
  port: 9000
  protocol: TCP
endpoints:
`)
	for i := range 10 {
		fmt.Fprintf(&b, `- addresses:
  - 10.128.0.%[1]d
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node-2
  targetRef:
    kind: Pod
    name: pod-%[1]d
    namespace: default
    uid: 99999999-2222-3333-4444-%012[1]d
`, i+10)
	}
	return b.Bytes()
}

func BenchmarkDecode(b *testing.B) {
	data := sliceDocument()
	objs, err := Decode("web.yaml", data)
	if err != nil {
		b.Fatal(err)
	}
	asJSON, err := marshal(objs.EndpointSlices.At(0))
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{{"yaml", data}, {"json", append([]byte("---\n"), asJSON...)}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode("web.yaml", c.data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
