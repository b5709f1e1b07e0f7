package labs

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/test/lab"
)

var (
	//go:embed node-1.yaml
	node1 string
	//go:embed node-2.yaml
	node2 string
	//go:embed ingress.yaml
	ingress string
)

// check refuses a Spec that no lab can have.
func (s Spec) check() error {
	if s.Name == "" || s.Nodes < 1 || s.Nodes > 2 || s.Services < 0 || s.Services > maxServices {
		return fmt.Errorf("lab %q: expected a name, 1 or 2 nodes and 0 to %d other Services, got %d and %d", s.Name, maxServices, s.Nodes, s.Services)
	}
	if s.Balancers && s.Nodes != 2 {
		return fmt.Errorf("lab %q: one with load balancers needs 2 nodes, got %d", s.Name, s.Nodes)
	}
	return nil
}

// maxServices leaves room in the lab's range of Service addresses, a /16.
const maxServices = 60000

// write writes the manifests into dir.
func (s Spec) write(dir string) error {
	files := map[string]string{"node-1.yaml": node1}
	if s.Nodes > 1 {
		files["node-2.yaml"] = node2
	}
	if s.Balancers {
		files["loadbalancer.yaml"] = loadBalancer
	}
	if s.Services > 0 {
		files["others.yaml"] = others(s.Services)
	}
	if s.Ingress {
		secret, err := lab.TLSSecret("near-tls", bench.HTTPHost)
		if err != nil {
			return err
		}
		files["ingress.yaml"] = ingress + secret
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// others returns n Services that nobody uses. Each has an EndpointSlice with two endpoints, so no pods are needed.
func others(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: other-%d}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: other-%[1]d, labels: {kubernetes.io/service-name: other-%[1]d}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.%[2]d.%[3]d]}, {addresses: [10.244.%[2]d.%[4]d]}]
`, i, 10+i/100, i%100+1, i%100+101)
	}
	return b.String()
}
