package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestConnectivity: every path that the connectivity test knows works, in every family that the cluster has.
func TestConnectivity(t *testing.T) {
	program := filepath.Join(filepath.Dir(theLab.Bin), "tapestry") // beside the directory of Kubernetes' programs
	hold(t, "outside", filepath.Join(theLab.Bin, "agnhost"), "netexec", "--http-port=9000", "--udp-port=9001")
	out, err := run(t.Context(), program, "connectivity-test", "--kubeconfig", theLab.Kubeconfig(), "--outside", "172.30.0.1:9000", "--output", "json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var results []struct{ Group, From, Name, Problem string }
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	groups := map[string]int{}
	for _, r := range results {
		groups[r.Group]++
	}
	figure(t, "connectivity test: %d ways, all open: %v", len(results), groups)
	for _, group := range []string{"pod-pod", "pod-service", "nodeport", "dns", "egress", "host"} {
		if groups[group] == 0 {
			t.Errorf("nothing of the group %s was tried", group)
		}
	}
	six := strings.Contains(out, "[fd00:")
	if dual := hasIPv6(t); six != dual {
		t.Errorf("an address of IPv6 was tried: %v, the cluster has such: %v", six, dual)
	}
}

func hasIPv6(t *testing.T) bool {
	t.Helper()
	for _, n := range state.Nodes {
		for _, a := range n.Addrs {
			if ip, err := netip.ParseAddr(a); err != nil {
				t.Fatal(err)
			} else if ip.Is6() {
				return true
			}
		}
	}
	return false
}

// TestDoctor: when nothing is wrong, doctor and status say so.
func TestDoctor(t *testing.T) {
	list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents})
	if err != nil || len(list.Items) != len(state.Nodes) {
		t.Fatalf("%d agents, %v", len(list.Items), err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		t.Run(p.Spec.NodeName, func(t *testing.T) {
			for _, command := range []string{"doctor", "status"} {
				eventually(t, soon, command, func() error {
					out, err := inPod(t.Context(), p, "/tapestry", command)
					if err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					t.Logf("%s:\n%s", command, out)
					return nil
				})
			}
		})
	}
}
