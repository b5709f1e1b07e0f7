package conformance

import (
	"regexp"
	"testing"
)

// Each reason leaves out tests that there are, and none that are ours to pass.
func TestLeft(t *testing.T) {
	for expression, name := range map[string]string{
		`\[Conformance\]`:                   "[sig-network] DNS should provide DNS for services [Conformance]",
		`\[Disruptive\]|\[Flaky\]`:          "[sig-network] Services should work after restarting kube-proxy [Disruptive]",
		`\[Feature:LoadBalancer\]`:          "[sig-network] LoadBalancers [Feature:LoadBalancer] should be able to change the type and ports of a UDP service [Slow]",
		`\[Feature:NetworkPolicy\]`:         "[sig-network] Netpol NetworkPolicy between server and client [Feature:NetworkPolicy] should deny ingress access to updated pod",
		`sctp|\[Feature:SCTPConnectivity\]`: "[sig-network] Networking Granular Checks: Services should function for pod-Service: sctp [Feature:SCTPConnectivity]",
		`DNS configMap nameserver`:          "[sig-network] DNS configMap nameserver Change stubDomain should be able to change stubDomain configuration [Slow] [Serial]",
		`\[Feature:OffByDefault\]`:          "[sig-network] DNS should work with a service name that starts with a digit [FeatureGate:RelaxedServiceNameValidation] [Alpha] [Feature:OffByDefault]",
		`\[Provider:GCE\]`:                  "[sig-network] DNS should provide DNS for the cluster [Provider:GCE]",
		`configurable pod resolv\.conf`:     "[sig-network] DNS should support configurable pod resolv.conf",
		`\[Feature:PerformanceDNS\]|\[Feature:Networking-Performance\]`:              "[sig-network] Networking IPerf2 [Feature:Networking-Performance] should run iperf2",
		`Internet connection|\[Feature:Networking-DNS\]|\[Feature:Networking-IPv6\]`: "[sig-network] Networking should provide Internet connection for containers [Feature:Networking-IPv4]",
		`KubeProxy should set TCP CLOSE_WAIT|KubeProxyNFAcct|check kube-proxy urls`:  "[sig-network] Networking should check kube-proxy urls",
	} {
		found := false
		for _, r := range Left {
			if r.Match == expression {
				found = true
				if r.Why == "" {
					t.Errorf("%s has no reason", expression)
				}
			}
		}
		if !found {
			t.Errorf("%s is not in Left", expression)
		}
		if ok, err := regexp.MatchString(expression, name); err != nil || !ok {
			t.Errorf("%s does not match %s (%v)", expression, name, err)
		}
	}
	left := regexp.MustCompile(LeftOut())
	for _, name := range []string{
		"[sig-network] Services should allow creating a basic SCTP service with pod and endpoints [LinuxOnly] [Serial]",
		"[sig-network] Networking should allow creating a Pod with an SCTP HostPort [LinuxOnly] [Serial]",
		"[sig-network] Services should implement service.kubernetes.io/headless",
		"[sig-network] Services should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node",
		"[sig-network] Services should have session affinity timeout work for NodePort service [LinuxOnly]",
		"[sig-network] [Feature:IPv6DualStack] should create service with ipv6 cluster ip",
		"[sig-network] DNS HostNetwork spec.Hostname field is not silently ignored and is used for hostname for a Pod",
	} {
		if left.MatchString(name) {
			t.Errorf("%s is left out", name)
		}
	}
}
