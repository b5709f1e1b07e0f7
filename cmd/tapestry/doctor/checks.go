package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/localapi"
)

func ok(check, format string, args ...any) []Finding {
	return []Finding{{check, OK, fmt.Sprintf(format, args...), ""}}
}

func unknown(check, message, remedy string) []Finding {
	return []Finding{{check, Unknown, message, remedy}}
}

func checkAgent(f *Facts) []Finding {
	const check = "agent"
	if f.Agent == nil {
		return []Finding{{check, Error, "it does not answer: " + f.AgentError,
			"see its log (kubectl -n kube-system logs ds/tapestry), and name its socket with --socket"}}
	}
	var list []Finding
	for _, m := range f.Agent.Missing {
		remedy := "see the checks below, and the agent's log"
		switch {
		case strings.HasPrefix(m, "keeper:"):
			remedy = "start the keeper: the agent gives it everything back, and must not end before"
		case strings.HasPrefix(m, "host:"), strings.HasPrefix(m, "pods:"):
			remedy = "as it says; tapestry status has the command for each of them"
		}
		list = append(list, Finding{check, Error, "the node is not ready: " + m, remedy})
	}
	if n := len(f.Agent.Problems); n > 0 {
		list = append(list, Finding{check, Warning, fmt.Sprintf("it sees %d problems with the cluster's objects", n), "tapestry status lists them"})
	}
	if len(list) == 0 {
		return ok(check, "it runs and is ready")
	}
	return list
}

// almost is the part of the descriptors from which on their use is told, in tenths.
const almost = 9

func checkDescriptors(f *Facts) []Finding {
	const check = "descriptors"
	if f.Agent == nil || f.Agent.Descriptors.Limit == 0 {
		return nil // an agent of an earlier version does not tell
	}
	d := f.Agent.Descriptors
	const remedy = "raise the hard limit of open files of the agent: LimitNOFILE in the unit of the container runtime, or ulimit -Hn of whoever starts it; the agent takes all that it may"
	switch {
	case d.InUse >= d.Limit/10*almost:
		return []Finding{{check, Error, fmt.Sprintf("%d of the %d open files that the agent may have are in use", d.InUse, d.Limit),
			"see what holds them: ls -l /proc/PID/fd of the agent, and tapestry status --table descriptors for what each part may have; " + remedy}}
	case d.Limit < d.Useful:
		return []Finding{{check, Warning, fmt.Sprintf("the agent may have %d open files, fewer than the %d that a busy node needs: clients, connections and ports are refused early (tapestry status --table descriptors)", d.Limit, d.Useful), remedy}}
	}
	return ok(check, "%d of %d open files are in use", d.InUse, d.Limit)
}

func checkTUN(f *Facts) []Finding {
	const check = "tap"
	switch {
	case f.TUN.Error == "":
		return ok(check, "/dev/net/tun can be opened")
	case f.TUN.Missing && f.Agent != nil && len(f.Agent.Pods) > 0:
		// The init step and the CNI plugin make the TAPs and pass them to the agent. It needs the device itself only to
		// attach to the host TAP again.
		return unknown(check, "there is no /dev/net/tun here (is this a container without hostTAP.enabled?); TAPs that were made before work", "run this on the node to check it")
	case f.TUN.Missing:
		return []Finding{{check, Error, "pods cannot get an interface: " + f.TUN.Error,
			"load the module (modprobe tun), and make sure that the containers have the device /dev/net/tun"}}
	case f.TUN.Denied:
		return []Finding{{check, Error, "pods cannot get an interface: " + f.TUN.Error,
			"give the agent's user the right to read and write /dev/net/tun, and the device cgroup the device c 10:200"}}
	}
	return []Finding{{check, Error, "pods cannot get an interface: " + f.TUN.Error, "make /dev/net/tun usable: crw-rw-rw- 10, 200"}}
}

func checkMTU(f *Facts) []Finding {
	const check = "mtu"
	if f.Agent == nil || f.Agent.MTU == 0 || len(f.Agent.Addresses) == 0 {
		return nil
	}
	d := &f.Agent.Node
	var list []Finding
	i := slices.IndexFunc(f.Interfaces, func(i Interface) bool {
		return slices.ContainsFunc(i.Addrs, func(a netip.Addr) bool { return slices.Contains(d.Addresses, a) })
	})
	switch {
	case i < 0:
		list = append(list, Finding{check, Warning, fmt.Sprintf("no interface of this host has the node's address %s, so that the MTU between the nodes is a guess", d.Addresses[0]),
			"check the Node's InternalIP, or start the agent with --underlay-mtu"})
	default:
		overhead := addressing.Tunnel(d.Addresses[0].Is6()) + addressing.Encap(!slices.ContainsFunc(d.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() }))
		switch nic := f.Interfaces[i]; {
		case d.MTU <= nic.MTU-overhead:
		case d.MTU == addressing.MinMTU && slices.ContainsFunc(d.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() }):
			list = append(list, Finding{check, Warning, fmt.Sprintf("IPv6 needs an MTU of %d, and %s, with %d, carries only %d through the tunnel: its packets go in pieces, which costs throughput", d.MTU, nic.Name, nic.MTU, nic.MTU-overhead),
				fmt.Sprintf("raise the MTU of the network between the nodes to %d", addressing.MinMTU+overhead)})
		default:
			list = append(list, Finding{check, Error, fmt.Sprintf("pods have an MTU of %d, and %s, with %d, carries only %d through the tunnel", d.MTU, nic.Name, nic.MTU, nic.MTU-overhead),
				fmt.Sprintf("start the agents with --underlay-mtu %d, and the pods anew", nic.MTU)})
		}
	}
	for _, p := range f.Agent.Peers {
		if p.HandshakeAge >= 0 && p.MTU > 0 && p.MTU < d.MTU {
			list = append(list, Finding{check, Warning, fmt.Sprintf("the path to node %s carries packets of %d bytes, and pods send up to %d", p.Name, p.MTU, d.MTU),
				"raise the MTU of the network between the nodes; until then larger packets are cut or refused, which costs time"})
		}
	}
	if len(list) == 0 {
		return ok(check, "%d for pods, and all paths carry that", d.MTU)
	}
	return list
}

// longSilence is when a node no longer counts as one that answers. Every path is probed each 10 s, and more often when
// an answer is missing.
const longSilence = time.Minute

func checkPeers(f *Facts) []Finding {
	const check = "peers"
	if f.Agent == nil {
		return nil
	}
	var list []Finding
	reached := 0
	for _, p := range f.Agent.Peers {
		switch {
		case p.PublicKey == "":
			list = append(list, Finding{check, Warning, fmt.Sprintf("node %s has announced no WireGuard key, so that its pods are not reached from here", p.Name),
				"see whether its agent runs, and may write annotations of its Node"})
		case p.HandshakeAge < 0:
			list = append(list, Finding{check, Error, fmt.Sprintf("node %s has never answered a handshake", p.Name), unreached(&p)})
		case p.AnswerAge > longSilence:
			list = append(list, Finding{check, Error, fmt.Sprintf("node %s has not answered for %v", p.Name, p.AnswerAge.Round(time.Second)), unreached(&p)})
		case len(p.Silent) > 0:
			list = append(list, Finding{check, Warning, fmt.Sprintf("node %s is talked to at %s and does not answer at %s", p.Name, p.Endpoint, p.Silent),
				"let UDP to these addresses through firewalls and security groups in both directions, or remove those that no node can reach from the Node"})
		default:
			reached++
		}
	}
	if len(list) == 0 {
		return ok(check, "%d other nodes, all of which answer", reached)
	}
	return list
}

func unreached(p *localapi.Peer) string {
	at := "its WireGuard port (51820 unless changed)"
	if p.Endpoint.IsValid() {
		at = p.Endpoint.String()
	}
	return fmt.Sprintf("let UDP to %s through firewalls and security groups in both directions; see whether its agent runs, and that both know each other's present key", at)
}

func checkKeys(f *Facts) []Finding {
	const check = "keys"
	switch {
	case f.Agent == nil || f.API == nil || f.API.Error != "":
		return nil
	case f.API.Keys == nil:
		return unknown(check, "the Nodes cannot be read: "+f.API.KeysError, "run this with credentials that may list Nodes")
	}
	var list []Finding
	compare := func(node, here string) {
		said, known := f.API.Keys[node]
		switch {
		case !known:
			list = append(list, Finding{check, Warning, "the API server has no Node " + node, "remove what is left of it, or start the agent with the Node's name (--node)"})
		case said != here:
			list = append(list, Finding{check, Error, fmt.Sprintf("the key of node %s is %s to the agent here and %s on the Node", node, orNone(here), orNone(said)),
				"when a node got a new key on purpose, start the agents that still know the old one anew; else somebody changed the annotation: have its agent publish it again by a restart"})
		}
	}
	compare(f.Agent.Name, f.Agent.PublicKey)
	for _, p := range f.Agent.Peers {
		compare(p.Name, p.PublicKey)
	}
	if len(list) == 0 {
		return ok(check, "the agent and the Nodes agree on %d keys", 1+len(f.Agent.Peers))
	}
	return list
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func checkAPI(f *Facts) []Finding {
	const check = "api"
	switch {
	case f.API == nil:
		return unknown(check, "no API server was named", "name one with --api-server to have access, clocks and keys looked at")
	case f.API.Error != "":
		return []Finding{{check, Error, fmt.Sprintf("%s cannot be used: %s", f.API.Server, f.API.Error),
			"use an address of a control plane node, not a ClusterIP, which this node would have to serve itself; check the firewall between and the credentials"}}
	}
	return ok(check, "%s answers", f.API.Server)
}

// WireGuard and certificates tolerate small differences.
const (
	clockWarning = 2 * time.Second
	clockError   = time.Minute
)

func checkClock(f *Facts) []Finding {
	const check = "clock"
	if f.API == nil || f.API.Error != "" {
		return nil
	}
	off, way := f.API.Offset, "behind"
	if off < 0 {
		off, way = -off, "ahead of"
	}
	// The margin of the measurement counts in favour of the clock.
	severity := OK
	switch real := off - f.API.Margin; {
	case real > clockError:
		severity = Error
	case real > clockWarning:
		severity = Warning
	}
	if severity == OK {
		return ok(check, "agrees with the API server's")
	}
	return []Finding{{check, severity, fmt.Sprintf("this node is %s %s the API server: tokens and certificates may not be valid here, and handshakes are refused after the clock was set back", off.Round(time.Second), way),
		"run a time service (chrony, systemd-timesyncd) on all nodes"}}
}

func checkDNS(f *Facts) []Finding {
	const check = "dns"
	var list []Finding
	for _, d := range f.DNS {
		if d.Error != "" {
			list = append(list, Finding{check, Error, fmt.Sprintf("cluster DNS at %s does not answer this host: %s", d.Addr, d.Error),
				"check that the service range is routed into the host TAP (ip route get " + d.Addr.String() + "), and the kernel's rules below"})
		}
	}
	if len(f.Upstreams) == 0 {
		list = append(list, Finding{check, Warning, "/etc/resolv.conf names no server, so that pods resolve no names outside of the cluster", "name servers with --dns-upstream"})
	}
	for _, u := range f.Upstreams {
		if f.Agent != nil && slices.Contains(f.Agent.DNS, u) {
			list = append(list, Finding{check, Warning, fmt.Sprintf("/etc/resolv.conf names cluster DNS (%s) itself", u),
				"run the agent with dnsPolicy Default, or name other servers with --dns-upstream"})
		}
	}
	if len(list) > 0 {
		return list
	}
	if len(f.DNS) == 0 {
		return ok(check, "there are servers for names outside; cluster DNS is not reached by the host without a host TAP")
	}
	return ok(check, "answers this host, and there are servers for names outside")
}

func checkPing(f *Facts) []Finding {
	const check = "ping"
	switch {
	case f.PingError != "":
		return unknown(check, "net.ipv4.ping_group_range cannot be read: "+f.PingError, "")
	case f.Group < f.PingGroups[0] || f.Group > f.PingGroups[1]:
		return []Finding{{check, Warning, fmt.Sprintf("pods cannot ping the outside: group %d of the agent is not within net.ipv4.ping_group_range (%d to %d)", f.Group, f.PingGroups[0], f.PingGroups[1]),
			`sysctl -w net.ipv4.ping_group_range="0 2147483647", on a rootless node "0 65535"`}}
	}
	return ok(check, "pods may ping the outside")
}

func checkRules(f *Facts) []Finding {
	const check = "rules"
	var list []Finding
	if len(f.Rules.Chains) > 0 {
		list = append(list, Finding{check, Error, "kube-proxy left rules that translate Services before they reach us: " + strings.Join(f.Rules.Chains, ", "),
			"stop kube-proxy (delete its DaemonSet), then run kube-proxy --cleanup on this node, or restart it"})
	}
	if f.Rules.IPVS {
		list = append(list, Finding{check, Error, "kube-proxy left the interface kube-ipvs0, which has the addresses of Services",
			"stop kube-proxy (delete its DaemonSet), then ip link delete kube-ipvs0 and ipvsadm --clear"})
	}
	switch {
	case len(list) > 0:
		return list
	case f.Rules.Legacy:
		return unknown(check, "there is a nat table of iptables-legacy, which is not looked into", "iptables-legacy-save -t nat | grep KUBE- must show nothing")
	case f.Rules.Error != "":
		return unknown(check, "the kernel's rules cannot be read: "+f.Rules.Error, "run this as root on the node to have them looked at")
	}
	return ok(check, "none of kube-proxy's")
}
