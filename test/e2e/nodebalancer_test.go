package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/test/lab"
)

// TestNodeLoadBalancers has Services at addresses of nodes, which takes no right: each node listens there, pods see
// their clients' own addresses, and with the Local policy only nodes with a pod listen.
func TestNodeLoadBalancers(t *testing.T) {
	const lb = `---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {type: LoadBalancer, externalTrafficPolicy: %[2]s, allocateLoadBalancerNodePorts: false, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [
  {name: line, port: %[3]d, targetPort: 9000}, {name: datagram, port: %[3]d, targetPort: 9000, protocol: UDP}]}
`
	c := upWith(t, testTime, lab.Options{Name: "nodebalancers"}, nodesYAML+podYAML("client", "node-2")+podYAML("web", "node-1")+`---
apiVersion: tapestry.dev/v1alpha1
kind: AddressPool
metadata: {name: nodes}
spec: {nodes: {}}
`+fmt.Sprintf(lb, "all", "Cluster", 8080)+fmt.Sprintf(lb, "local", "Local", 8081)+fmt.Sprintf(lb, "taken", "Cluster", 8080))
	for _, v6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			for _, node := range []string{"node-1", "node-2"} {
				to := at(c.addr(t, node, v6), 8080)
				if a := c.reached(t, network, to, "web"); !c.isOutside(t, a, v6) {
					t.Errorf("%s %s: the pod sees %s, want an address of the client outside", network, to, a)
				}
				// A pod's packets are translated on its own node.
				c.reaches(t, lab.Pod("client"), network, to, "web")
				c.reaches(t, lab.Node("node-2"), network, to, "web")
			}
			c.reached(t, network, at(c.addr(t, "node-1", v6), 8081), "web")
		}
		if a := c.ask(t, lab.Outside(), "tcp", at(c.addr(t, "node-2", v6), 8081)); a.Error != "refused" {
			t.Errorf("Local, where there is no pod: %q %q, want it refused", a.Pod, a.Error)
		}
	}
	c.until(t, "the status to list, of a local Service, the node with the pod alone", func(st *lab.Status) bool {
		at := map[string][]string{}
		for _, s := range st.Services {
			at[s.Name] = s.Outside
		}
		return len(at["all"]) == 4 && slices.Equal(at["local"], []string{c.addr(t, "node-1", false).String(), c.addr(t, "node-1", true).String()})
	})
	c.until(t, "whoever wants a port that another has is told", func(st *lab.Status) bool {
		return slices.ContainsFunc(st.Problems, func(p string) bool {
			return strings.Contains(p, `Service default/taken`) && strings.Contains(p, `has one of its ports on the nodes of AddressPool "nodes"`)
		})
	})
}
