// Package doctor finds out what prevents a node's network from working, and says what to do. Gather inspects the
// machine. Diagnose is a pure function of what Gather found.
package doctor

import (
	"net/netip"
	"time"

	"tapestry.dev/tapestry/localapi"
)

// Severity is the severity of a Finding.
type Severity string

// The severities, best first.
const (
	OK      Severity = "ok"
	Unknown Severity = "unknown" // it could not be checked
	Warning Severity = "warning" // something does not work, or will not
	Error   Severity = "error"   // the node's network does not work
)

// Finding is the result of one check.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	// Remedy says what to do; "" if there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// Facts are what Gather found. Errors are texts; "" means that there was none.
type Facts struct {
	// Agent is what the agent reports. If it does not answer, Agent is nil and AgentError says why.
	Agent      *Agent
	AgentError string
	// TUN is the result of opening /dev/net/tun.
	TUN TUN
	// Interfaces are the interfaces of the host.
	Interfaces []Interface
	// PingGroups are the first and the last group that may send pings (net.ipv4.ping_group_range). PingError is set if
	// they cannot be read.
	PingGroups [2]uint32
	PingError  string
	// Group is the group as which this process, and so the agent, runs.
	Group uint32
	// API is the result of questions to the API server; nil if no server is known.
	API *API
	// DNS are the answers of cluster DNS to this host, if there is a host TAP.
	DNS []DNS
	// Upstreams are the servers in /etc/resolv.conf.
	Upstreams []netip.Addr
	// Rules are the packet filter rules of the host's kernel.
	Rules Rules
}

// Agent is what an agent reports about its node.
type Agent struct {
	localapi.Node
	Peers    []localapi.Peer
	Pods     []localapi.Pod
	Problems []localapi.Problem
	Announcing
}

// TUN is the result of opening /dev/net/tun.
type TUN struct {
	Error string
	// Missing means that there is no such file, or no such device behind it. Denied means that it may not be opened.
	Missing, Denied bool
}

// Interface is an interface of the host.
type Interface struct {
	Name  string
	MTU   int
	Addrs []netip.Addr
}

// API is the result of questions to the API server.
type API struct {
	Server string
	Error  string
	// Offset is by how much the server's clock is ahead of this host's, give or take Margin.
	Offset, Margin time.Duration
	// Keys are the WireGuard keys of all Nodes by name; a key may be "". If they cannot be read, Keys is nil and
	// KeysError says why.
	Keys      map[string]string
	KeysError string
}

// DNS is the answer of one address of cluster DNS.
type DNS struct {
	Addr  netip.Addr
	Error string
}

// Rules are the kernel's rules that change packets before or after the agent sees them.
type Rules struct {
	// Error is set if the rules could not be read. Reading needs CAP_NET_ADMIN.
	Error string
	// Chains are the chains of kube-proxy, such as "ip nat KUBE-SERVICES" or "ip kube-proxy services".
	Chains []string
	// Legacy means that there is a nat table of iptables-legacy. Its content is not read.
	Legacy bool
	// IPVS means that there is an interface of kube-proxy's IPVS mode.
	IPVS bool
}

// Diagnose runs all checks, in a fixed order, and returns their findings.
func Diagnose(f *Facts) []Finding {
	var list []Finding
	for _, check := range []func(*Facts) []Finding{
		checkAgent, checkDescriptors, checkTUN, checkMTU, checkPeers, checkKeys, checkAPI, checkClock, checkDNS, checkPing, checkRules, checkAnnouncers,
	} {
		list = append(list, check(f)...)
	}
	return list
}

// Worst returns the worst severity in list.
func Worst(list []Finding) Severity {
	rank := map[Severity]int{OK: 0, Unknown: 1, Warning: 2, Error: 3}
	worst := OK
	for _, f := range list {
		if rank[f.Severity] > rank[worst] {
			worst = f.Severity
		}
	}
	return worst
}
