package conformance

import "strings"

// Others matches the tests of the network that Left leaves to run beside those of Conformance.
const Others = `\[sig-network\]`

// A Reason says why tests are left out.
type Reason struct {
	// Match is a regular expression for the names of the tests.
	Match, Why string
}

// Left lists the tests of the network that are left out of the run of the others, and why.
var Left = []Reason{
	{`\[Conformance\]`, "has a run of its own"},
	{`\[Disruptive\]|\[Flaky\]`, "breaks the cluster for the other tests, or fails sometimes on every cluster"},
	{`\[Feature:LoadBalancer\]`, "has a run of its own, with a pool of addresses"},
	{`\[Feature:NetworkPolicy\]`, "have a run of their own"},
	{`sctp|\[Feature:SCTPConnectivity\]`, "opens SCTP sockets in pods, for which the machine's kernel has to have SCTP"},
	{`Internet connection|\[Feature:Networking-DNS\]|\[Feature:Networking-IPv6\]`, "asks servers in the Internet, which the lab does not have"},
	{`KubeProxy should set TCP CLOSE_WAIT|KubeProxyNFAcct|check kube-proxy urls`, "asks kube-proxy itself, or the kernel's connection tracking"},
	{`DNS configMap nameserver`, "changes the configuration of CoreDNS, and looks for its effect"},
	{`\[Feature:PerformanceDNS\]|\[Feature:Networking-Performance\]`, "measures"},
	{`\[Feature:OffByDefault\]`, "needs a feature gate that is off"},
	{`\[Provider:GCE\]`, "needs that cloud"},
	{`configurable pod resolv\.conf`, "needs a CoreDNS inside agnhost's image, which is packed without"},
}

// LeftOut returns an expression for the names of all tests in Left.
func LeftOut() string {
	var all []string
	for _, r := range Left {
		all = append(all, r.Match)
	}
	return strings.Join(all, "|")
}
