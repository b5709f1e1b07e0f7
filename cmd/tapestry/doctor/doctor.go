// Package doctor finds out what keeps a node's network from working and says what to do. Gather looks at the machine,
// Diagnose is a pure function of what was seen.
package doctor

import (
	"net/netip"
	"time"

	"tapestry.dev/tapestry/localapi"
)

// Severity of a Finding.
type Severity string

// The severities, best first.
const (
	OK      Severity = "ok"
	Unknown Severity = "unknown" // it could not be looked at
	Warning Severity = "warning" // something does not work, or will not
	Error   Severity = "error"   // the node's network does not work
)

// Finding is what one check says.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Message  string   `json:"message"`
	// Remedy says what to do; "" when all is well.
	Remedy string `json:"remedy,omitempty"`
}

// Facts are what was seen. An error is its text, "" for none.
type Facts struct {
	// Agent is what the agent tells; nil with AgentError when it does not answer.
	Agent      *Agent
	AgentError string
	// TUN is how opening /dev/net/tun went.
	TUN TUN
	// Interfaces are those of the host.
	Interfaces []Interface
	// PingGroups are the first and last group that may ping (net.ipv4.ping_group_range); PingError when that cannot be
	// read.
	PingGroups [2]uint32
	PingError  string
	// Group is the one that the agent runs as.
	Group uint32
	// API is how talking to the API server went; nil when none was named.
	API *API
	// DNS are the answers of cluster DNS to this host, where there is a host TAP.
	DNS []DNS
	// Upstreams are the servers in /etc/resolv.conf.
	Upstreams []netip.Addr
	// Rules are those of the host's kernel.
	Rules Rules
}

// Agent is what an agent tells about itself.
type Agent struct {
	localapi.Node
	Peers    []localapi.Peer
	Pods     []localapi.Pod
	Problems []localapi.Problem
}

// TUN is how opening /dev/net/tun went.
type TUN struct {
	Error string
	// Missing: there is no such file, or no such device behind it; Denied: it may not be opened.
	Missing, Denied bool
}

// Interface is one of the host's.
type Interface struct {
	Name  string
	MTU   int
	Addrs []netip.Addr
}

// API is how talking to the API server went.
type API struct {
	Server string
	Error  string
	// Offset is by how much the server's clock is ahead of ours, give or take Margin.
	Offset, Margin time.Duration
	// Keys are the WireGuard keys of all Nodes by name, "" for none; nil with KeysError.
	Keys      map[string]string
	KeysError string
}

// DNS is the answer of one address.
type DNS struct {
	Addr  netip.Addr
	Error string
}

// Rules are what the kernel does with packets before or after us.
type Rules struct {
	// Error is set when they could not be read, which needs CAP_NET_ADMIN.
	Error string
	// Chains are kube-proxy's, "ip nat KUBE-SERVICES" or "ip kube-proxy services".
	Chains []string
	// Legacy: there is a nat table of the iptables that does not use nftables, which is not looked into.
	Legacy bool
	// IPVS: there is kube-proxy's interface of that mode.
	IPVS bool
}

// Diagnose judges all that was seen, in a fixed order.
func Diagnose(f *Facts) []Finding {
	var list []Finding
	for _, check := range []func(*Facts) []Finding{
		checkAgent, checkTUN, checkMTU, checkPeers, checkKeys, checkAPI, checkClock, checkDNS, checkPing, checkRules,
	} {
		list = append(list, check(f)...)
	}
	return list
}

// Worst is the worst severity among list.
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
