package translate_test

import (
	"encoding/base64"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

var update = flag.Bool("update", false, "rewrite testdata/*.out.yaml")

// named are the ranges that the operator names in some cases.
var named = map[string]*translate.Ranges{
	"named-ranges": {
		Pods:     addresstest.Prefixes("10.244.0.0/16", "fd00:244::/48", "172.30.0.0/16", "192.168.0.0/24"),
		Services: addresstest.Prefixes("10.96.0.0/12"),
	},
}

// TestGolden translates testdata/<case>.in.yaml for node n1 and compares the result with <case>.out.yaml.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, in := range inputs {
		name := strings.TrimSuffix(filepath.Base(in), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			objs, err := codec.Decode("in.yaml", data)
			if err != nil {
				t.Fatal(err)
			}
			got, err := yaml.Marshal(render(translate.Translate(objs, translate.Options{Node: "n1", Ranges: named[name]})))
			if err != nil {
				t.Fatal(err)
			}
			out := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(out, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatalf("%v (go test -update writes it)", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func upgrades(list []string) string {
	if list == nil {
		return ""
	}
	return fmt.Sprintf(" upgrades %q", list)
}

// render makes a Result readable. Equal Results are rendered equally. It leaves out private keys.
func render(r translate.Result) any {
	type m = map[string]any
	var peers, routes, svcs, names, pods, podNames, hostPorts, certs, ingressRoutes, problems []any
	for _, p := range r.Overlay.Peers {
		key := ""
		if p.PublicKey != (overlay.PublicKey{}) {
			key = base64.StdEncoding.EncodeToString(p.PublicKey[:])
		}
		peer := m{"id": fmt.Sprintf("%016x", p.ID), "name": p.Name, "key": key, "endpoint": p.Endpoint.String(),
			"prefixes": texts(p.Prefixes), "stack": texts(p.StackAddrs), "tapestry": p.Tapestry, "takesPartial": p.TakesPartial}
		if len(p.Others) > 0 {
			peer["others"] = texts(p.Others)
		}
		peers = append(peers, peer)
	}
	for _, p := range r.Netstack.Peers {
		route := m{"id": fmt.Sprintf("%016x", p.ID), "name": p.Name, "podCIDRs": texts(p.PodCIDRs),
			"nodeAddrs": texts(p.NodeAddrs), "encap": p.Encap, "sendsPartial": p.SendsPartial}
		if p.Unready {
			route["unready"] = true
		}
		routes = append(routes, route)
	}
	for _, s := range r.Services.Services.All() {
		svcs = append(svcs, service(*s))
	}
	for _, p := range r.Services.Pods {
		pods = append(pods, fmt.Sprintf("%s %s", p.ID, p.Addrs))
	}
	for _, s := range r.DNS.Services {
		names = append(names, name(s))
	}
	for _, p := range r.DNS.Pods {
		line := fmt.Sprintf("%s %s", p.Namespace, p.Addrs)
		if p.HostNetwork {
			line += " of the host"
		}
		podNames = append(podNames, line)
	}
	for _, p := range r.Services.HostPorts {
		hostPorts = append(hostPorts, fmt.Sprintf("%s %s %s -> %s", p.Pod, protos[p.Protocol], netip.AddrPortFrom(p.Addr, p.Port), p.To))
	}
	for _, c := range r.Ingress.Certificates {
		certs = append(certs, fmt.Sprintf("%s for %s, subject %s, key redacted", c.Name, c.Hosts, c.Cert.Leaf.Subject))
	}
	for _, route := range r.Ingress.Routes {
		ingressRoutes = append(ingressRoutes, fmt.Sprintf("%s: host=%q %s %s -> %s", route.Source, route.Host,
			map[ingress.PathType]string{ingress.Prefix: "prefix", ingress.Exact: "exact"}[route.Type], route.Path, route.Backend)+upgrades(route.Upgrades))
	}
	for _, p := range r.Problems {
		problems = append(problems, string(p.Severity)+": "+p.String())
	}
	def := "none"
	if r.Ingress.Default != nil {
		def = r.Ingress.Default.String()
	}
	out := m{
		"netstack": m{"node": r.Netstack.Node, "mtu": r.Netstack.MTU, "podCIDRs": texts(r.Netstack.PodCIDRs), "nodeAddrs": texts(r.Netstack.NodeAddrs),
			"clusterCIDRs": texts(r.Netstack.ClusterCIDRs), "serviceCIDRs": texts(r.Netstack.ServiceCIDRs),
			"localAddrs": texts(r.Netstack.LocalAddrs), "peers": routes},
		"overlay": peers,
		"services": m{"node": r.Services.Node, "nodeAddrs": texts(r.Services.NodeAddrs), "ownAddrs": texts(r.Services.OwnAddrs),
			"serviceCIDRs": texts(r.Services.ServiceCIDRs), "dnsAddrs": texts(r.Services.DNSAddrs), "services": svcs, "pods": pods, "hostPorts": hostPorts},
		"dns":      m{"addrs": texts(r.DNS.Addrs), "services": names, "pods": podNames},
		"ingress":  m{"routes": ingressRoutes, "default": def, "certificates": certs},
		"problems": problems,
	}
	if a := r.Announce; len(a.Links)+len(a.Peers)+len(a.Routes) > 0 {
		out["announce"] = announced(r)
	}
	if r.Exits.Addrs != nil {
		addrs := map[string][]string{}
		for name, list := range r.Exits.Addrs {
			addrs[name] = texts(list)
		}
		out["exits"] = m{"addresses": texts(r.Exits.Addresses), "addrs": addrs, "held": r.Exits.Held, "free": r.Exits.Free}
	}
	if r.Quotas != nil {
		out["quotas"] = r.Quotas
	}
	if len(r.Policy.Policies)+len(r.Policy.Cluster) > 0 {
		out["policy"] = policies(r.Policy)
	}
	if r.Leaving {
		out["leaving"] = true
	}
	return out
}

// policies makes what policies say readable, and whom they may select.
func policies(c policy.Config) any {
	selector := func(s law.Selector) string {
		var parts []string
		for _, q := range s {
			parts = append(parts, fmt.Sprint(q.Key, [...]string{" in ", " not in ", " exists", " not there"}[q.Op], q.Values))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	// ends makes readable for whom and for which ports a rule is.
	ends := func(rule *law.Rule) string {
		line := fmt.Sprintf("everybody=%t", rule.Everybody)
		for _, q := range rule.Parties {
			switch {
			case q.Range.IsValid():
				line += fmt.Sprintf("; %s without %s", q.Range, q.Except)
			case q.Nodes:
				line += "; nodes " + selector(q.Pods)
			case q.Namespaces == nil:
				line += "; pods " + selector(q.Pods)
			default:
				line += "; pods " + selector(q.Pods) + " in " + selector(*q.Namespaces)
			}
		}
		line += fmt.Sprintf(" to anyPort=%t", rule.AnyPort)
		for _, q := range rule.Ports {
			line += fmt.Sprintf(" %s %q %d-%d", protos[q.Proto], q.Name, q.First, q.Last)
		}
		return line
	}
	var list, cluster, own, others, nodes, namespaces []string
	for _, p := range c.Cluster {
		name := fmt.Sprintf("%s %d %s", [...]string{"Admin", "Baseline"}[p.Tier], p.Priority, p.Name) + map[bool]string{true: ", staged,"}[p.Staged]
		cluster = append(cluster, fmt.Sprintf("%s for %s in %s", name, selector(p.Pods), selector(p.Namespaces)))
		for direction, rules := range map[string][]tiers.Rule{"ingress": p.Ingress, "egress": p.Egress} {
			for i := range rules {
				action := [...]string{"Pass", "Accept", "Deny"}[rules[i].Action]
				cluster = append(cluster, fmt.Sprintf("%s %s[%d]: %s %s", name, direction, i, action, ends(&rules[i].Rule)))
			}
		}
	}
	slices.Sort(cluster)
	for _, p := range c.Policies {
		list = append(list, fmt.Sprintf("%s/%s for %s", p.Namespace, p.Name, selector(p.Pods))+map[bool]string{true: ", staged"}[p.Staged])
		for direction, rules := range map[string]policy.Rules{"ingress": p.Ingress, "egress": p.Egress} {
			for i, rule := range rules.List {
				list = append(list, fmt.Sprintf("%s/%s %s[%d]: %s", p.Namespace, p.Name, direction, i, ends(&rule)))
			}
			if rules.Isolates {
				list = append(list, fmt.Sprintf("%s/%s isolates for %s", p.Namespace, p.Name, direction))
			}
		}
	}
	slices.Sort(list)
	pod := func(p *policy.Pod) string {
		line := fmt.Sprintf("%s/%s%s%s %s %s", p.Namespace, p.Name, strings.TrimRight("="+p.UID, "="), strings.TrimRight("@"+p.Node, "@"), p.Labels, p.Addrs)
		for _, q := range p.Ports {
			line += fmt.Sprintf(" %q=%d/%s", q.Name, q.Port, protos[q.Proto])
		}
		return line
	}
	for _, p := range c.Own {
		own = append(own, pod(p))
	}
	for _, p := range c.Others.All() {
		others = append(others, pod(p))
	}
	for _, n := range c.Namespaces {
		namespaces = append(namespaces, fmt.Sprint(n.Name, n.Labels))
	}
	for _, n := range c.Nodes {
		line := fmt.Sprintf("%s %s, host %s, agent %s, pods %s", n.Name, n.Addrs, n.Host, n.Agent, n.Pods)
		if n.Labels != nil {
			line += fmt.Sprint(", labels ", n.Labels)
		}
		nodes = append(nodes, line)
	}
	out := map[string]any{"policies": list, "own": own, "others": others, "namespaces": namespaces, "nodes": nodes}
	if cluster != nil {
		out["cluster"] = cluster
	}
	return out
}

// announced makes what is announced readable, with the peers that are watched for it.
func announced(r translate.Result) any {
	var watched, lines []string
	for _, p := range r.Overlay.Peers {
		if p.Watched {
			watched = append(watched, p.Name)
		}
	}
	for _, l := range r.Announce.Links {
		line := fmt.Sprintf("%s for %s by %s on %s", l.Addr, l.Services, l.Ranked, l.Interfaces)
		if l.Egress != "" {
			line = fmt.Sprintf("%s for EgressAddress %s (used here: %t) by %s on %s", l.Addr, l.Egress, l.Used, l.Ranked, l.Interfaces)
		}
		lines = append(lines, line)
	}
	for _, p := range r.Announce.Peers {
		lines = append(lines, fmt.Sprintf("peer %s: %+v", p.Name, p))
	}
	for _, route := range r.Announce.Routes {
		pref := "none"
		if route.LocalPref != nil {
			pref = fmt.Sprint(*route.LocalPref)
		}
		lines = append(lines, fmt.Sprintf("%s to %s for %s, communities %s, preference %s", route.Prefix, route.Peer, route.Services, route.Communities, pref))
	}
	return map[string]any{"down": r.Announce.Down, "watched": watched, "lines": lines}
}

var protos = map[packet.Proto]string{packet.TCP: "TCP", packet.UDP: "UDP", packet.SCTP: "SCTP"}

func service(s services.Service) any {
	var ports, endpoints []string
	for _, p := range s.Ports {
		ports = append(ports, fmt.Sprintf("%q %d/%s nodePort %d", p.Name, p.Port, protos[p.Protocol], p.NodePort))
	}
	for _, e := range s.Endpoints {
		line := fmt.Sprintf("%s id=%s node=%q", e.Addr, e.ID, e.Node)
		for _, flag := range []struct {
			set  bool
			name string
		}{{e.Ready, "ready"}, {e.Serving, "serving"}, {e.Terminating, "terminating"}} {
			if flag.set {
				line += " " + flag.name
			}
		}
		if e.ForNode != services.NoHint || e.ForZone != services.NoHint {
			line += fmt.Sprintf(" forNode=%d forZone=%d", e.ForNode, e.ForZone)
		}
		for _, p := range e.Ports {
			line += fmt.Sprintf(" %q=%d/%s", p.Name, p.Port, protos[p.Protocol])
		}
		endpoints = append(endpoints, line)
	}
	m := map[string]any{
		"name": s.Namespace + "/" + s.Name, "clusterIPs": texts(s.ClusterIPs),
		"externalIPs": texts(s.ExternalIPs), "ports": ports, "affinity": s.Affinity.String(), "balance": s.Balance.String(), "internalLocal": s.InternalLocal,
		"externalLocal": s.ExternalLocal, "publishNotReady": s.PublishNotReady, "endpoints": endpoints,
	}
	if s.SourceRanges != nil { // few Services have any
		m["sourceRanges"] = fmt.Sprint(s.SourceRanges)
	}
	if len(s.SocketIPs) > 0 || s.Proxy != 0 {
		m["sockets"] = fmt.Sprintf("%s, PROXY v%d", s.SocketIPs, s.Proxy)
	}
	if s.HealthCheckNodePort != 0 {
		m["healthPort"] = s.HealthCheckNodePort
	}
	return m
}

func name(s *dns.Service) string {
	line := fmt.Sprintf("%s/%s", s.Namespace, s.Name)
	if s.ExternalName != "" {
		return line + " -> " + s.ExternalName
	}
	line += fmt.Sprintf(" %s", s.ClusterIPs)
	for _, p := range s.Ports {
		line += fmt.Sprintf(" %q=%d/%s", p.Name, p.Port, protos[p.Protocol])
	}
	for _, e := range s.Endpoints {
		line += fmt.Sprintf("; %s %q", e.Addr, e.Hostname)
		for _, p := range e.Ports {
			line += fmt.Sprintf(" %q=%d/%s", p.Name, p.Port, protos[p.Protocol])
		}
	}
	return line
}

func texts[T netip.Addr | netip.Prefix | netip.AddrPort](list []T) []string {
	var out []string
	for _, x := range list {
		out = append(out, fmt.Sprint(x))
	}
	return out
}
