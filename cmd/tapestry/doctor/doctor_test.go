package doctor

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/localapi"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// healthy returns the facts of a node without problems.
func healthy() *Facts {
	return &Facts{
		Agent: &Agent{
			Node: localapi.Node{
				Name: "n1", PublicKey: "key1", HostTAP: true, Addresses: []netip.Addr{addr("192.0.2.1")},
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, MTU: 1420, DNS: []netip.Addr{addr("10.96.0.10")},
				Descriptors:   localapi.Descriptors{Limit: 16384, InUse: 100, Useful: 16384},
				LoadBalancers: localapi.LoadBalancers{Tier: localapi.HostTAP, Ranges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
			},
			Announcing: Announcing{
				Claims:   []announce.Claim{{Addr: addr("198.51.100.1"), State: announce.Announced}},
				Sessions: []announce.Session{{Peer: "tor", Address: netip.MustParseAddrPort("192.0.2.254:179"), State: "established"}},
			},
			Peers: []localapi.Peer{{Name: "n2", PublicKey: "key2", HandshakeAge: time.Second, MTU: 1440, Endpoint: netip.MustParseAddrPort("192.0.2.2:51820")}},
		},
		Interfaces: []Interface{{"lo", 65536, []netip.Addr{addr("127.0.0.1")}}, {"eth0", 1500, []netip.Addr{addr("192.0.2.1")}}},
		PingGroups: [2]uint32{0, 1000}, Group: 1000,
		API:       &API{Server: "https://192.0.2.9:6443", Margin: time.Second, Keys: map[string]string{"n1": "key1", "n2": "key2"}},
		DNS:       []DNS{{Addr: addr("10.96.0.10")}},
		Upstreams: []netip.Addr{addr("192.0.2.53")},
	}
}

func TestHealthy(t *testing.T) {
	findings := Diagnose(healthy())
	if len(findings) != 12 {
		t.Errorf("%d findings, want one of each check", len(findings))
	}
	for _, f := range findings {
		if f.Severity != OK || f.Remedy != "" || f.Message == "" {
			t.Errorf("%+v", f)
		}
	}
	if Worst(findings) != OK {
		t.Errorf("worst is %s", Worst(findings))
	}
}

func TestDiagnose(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(*Facts)
		check  string
		worst  Severity
		says   string // in message or remedy
	}{
		"no agent":  {func(f *Facts) { f.Agent, f.AgentError = nil, "connection refused" }, "agent", Error, "connection refused"},
		"not ready": {func(f *Facts) { f.Agent.Missing = []string{"packets: timed out"} }, "agent", Error, "packets: timed out"},
		"no keeper": {func(f *Facts) { f.Agent.Missing = []string{"keeper: gone"} }, "agent", Error, "start the keeper"},
		"no NET_RAW": {func(f *Facts) {
			f.Agent.Claims[0].State, f.Agent.Claims[0].Problem = announce.Failed, "open a socket for ARP, which takes NET_RAW: operation not permitted"
		}, "announcers", Error, "give the announcer NET_RAW"},
		"no interface": {func(f *Facts) {
			f.Agent.Claims[0].State, f.Agent.Claims[0].Problem = announce.Failed, "no such interface"
		}, "announcers", Error, "L2Advertisement"},
		"a conflict": {func(f *Facts) {
			f.Agent.Claims[0].State, f.Agent.Claims[0].Problem = announce.Conflict, "answered for by 02:00"
		}, "announcers", Warning, "answered for by 02:00"},
		"no session":       {func(f *Facts) { f.Agent.Sessions[0].State = "active" }, "announcers", Warning, "no session with the router tor at 192.0.2.254:179: it is active"},
		"another range":    {func(f *Facts) { f.Agent.Claims[0].Addr = addr("203.0.113.1") }, "announcers", Error, "203.0.113.1 is announced, and no range"},
		"no range":         {func(f *Facts) { f.Agent.Claims, f.Agent.LoadBalancers.Ranges = nil, nil }, "announcers", Error, "hostTAP.loadBalancerCIDRs"},
		"no forwarding":    {func(f *Facts) { f.Agent.NoForward = []string{"net.ipv6.conf.all.forwarding", "net.ipv4.ip_forward"} }, "announcers", Error, "sysctl -w net.ipv4.ip_forward=1"},
		"strict rp_filter": {func(f *Facts) { f.Agent.Strict = []string{"eth0", "eth1"} }, "announcers", Unknown, "rp_filter is strict on eth0, eth1"},
		"problems":         {func(f *Facts) { f.Agent.Problems = make([]localapi.Problem, 2) }, "agent", Warning, "2 problems"},
		"few descriptors":  {func(f *Facts) { f.Agent.Descriptors.Limit = 1024 }, "descriptors", Warning, "LimitNOFILE"},
		"used descriptors": {func(f *Facts) { f.Agent.Descriptors.InUse = 15000 }, "descriptors", Error, "15000 of the 16384"},
		"no tun":           {func(f *Facts) { f.TUN = TUN{Error: "no such file", Missing: true} }, "tap", Error, "modprobe tun"},
		"no tun in a container": {func(f *Facts) {
			f.TUN = TUN{Error: "no such file", Missing: true}
			f.Agent.Pods = []localapi.Pod{{Name: "host"}}
		}, "tap", Unknown, "run this on the node"},
		"tun denied":    {func(f *Facts) { f.TUN = TUN{Error: "permission denied", Denied: true} }, "tap", Error, "device cgroup"},
		"tun odd":       {func(f *Facts) { f.TUN = TUN{Error: "io"} }, "tap", Error, "10, 200"},
		"MTU too large": {func(f *Facts) { f.Agent.MTU = 1421 }, "mtu", Error, "--underlay-mtu 1500"},
		"MTU too large, v6": {func(f *Facts) {
			f.Agent.MTU, f.Agent.Addresses[0], f.Interfaces[1].Addrs[0] = 1401, addr("2001:db8::1"), addr("2001:db8::1")
		}, "mtu", Error, "only 1400"},
		"MTU too small for IPv6": {func(f *Facts) {
			f.Agent.MTU, f.Interfaces[1].MTU = 1280, 1300
			f.Agent.PodCIDRs = append(f.Agent.PodCIDRs, netip.MustParsePrefix("fd00::/64"))
		}, "mtu", Warning, "between the nodes to 1360"},
		"MTU too large, small":  {func(f *Facts) { f.Agent.MTU, f.Interfaces[1].MTU = 1280, 1300 }, "mtu", Error, "only 1220"},
		"address elsewhere":     {func(f *Facts) { f.Interfaces = f.Interfaces[:1] }, "mtu", Warning, "192.0.2.1"},
		"narrow path":           {func(f *Facts) { f.Agent.Peers[0].MTU = 1300 }, "mtu", Warning, "n2 carries packets of 1300"},
		"keyless peer":          {func(f *Facts) { f.Agent.Peers[0].PublicKey = ""; f.API.Keys["n2"] = "" }, "peers", Warning, "annotations"},
		"unreached peer":        {func(f *Facts) { f.Agent.Peers[0].HandshakeAge = -1 }, "peers", Error, "UDP to 192.0.2.2:51820"},
		"peer that is gone":     {func(f *Facts) { f.Agent.Peers[0].AnswerAge = 95 * time.Second }, "peers", Error, "see whether its agent runs"},
		"unreached, no address": {func(f *Facts) { p := &f.Agent.Peers[0]; p.HandshakeAge, p.Endpoint = -1, netip.AddrPort{} }, "peers", Error, "51820 unless changed"},
		"own key differs":       {func(f *Facts) { f.API.Keys["n1"] = "old" }, "keys", Error, "key1 to the agent here and old on the Node"},
		"peer's key differs":    {func(f *Facts) { f.API.Keys["n2"] = "" }, "keys", Error, "none on the Node"},
		"silent address": {func(f *Facts) {
			f.Agent.Peers[0].Silent = []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::2]:51820")}
		}, "peers", Warning, "does not answer at [[2001:db8::2]:51820]"},
		"no such node":          {func(f *Facts) { delete(f.API.Keys, "n1") }, "keys", Warning, "no Node n1"},
		"nodes may not be read": {func(f *Facts) { f.API.Keys, f.API.KeysError = nil, "403 Forbidden" }, "keys", Unknown, "403"},
		"no API server named":   {func(f *Facts) { f.API = nil }, "api", Unknown, "--api-server"},
		"API server away":       {func(f *Facts) { f.API.Error = "timeout" }, "api", Error, "not a ClusterIP"},
		"clock behind":          {func(f *Facts) { f.API.Offset = 10 * time.Second }, "clock", Warning, "10s behind"},
		"clock far ahead":       {func(f *Facts) { f.API.Offset = -time.Hour }, "clock", Error, "ahead of"},
		"DNS away":              {func(f *Facts) { f.DNS[0].Error = "timeout" }, "dns", Error, "ip route get 10.96.0.10"},
		"no upstream":           {func(f *Facts) { f.Upstreams = nil }, "dns", Warning, "--dns-upstream"},
		"circle":                {func(f *Facts) { f.Upstreams = f.Agent.DNS }, "dns", Warning, "dnsPolicy Default"},
		"group below":           {func(f *Facts) { f.PingGroups = [2]uint32{1001, 2000} }, "ping", Warning, "sysctl"},
		"nobody may ping":       {func(f *Facts) { f.PingGroups = [2]uint32{1, 0} }, "ping", Warning, "sysctl"},
		"ping unread":           {func(f *Facts) { f.PingError = "no such file" }, "ping", Unknown, "no such file"},
		"chains":                {func(f *Facts) { f.Rules.Chains = []string{"ip nat KUBE-SERVICES"} }, "rules", Error, "--cleanup"},
		"ipvs":                  {func(f *Facts) { f.Rules.IPVS, f.Rules.Error = true, "denied" }, "rules", Error, "kube-ipvs0"},
		"rules unread":          {func(f *Facts) { f.Rules.Error = "reading them needs CAP_NET_ADMIN" }, "rules", Unknown, "as root"},
		"iptables-legacy":       {func(f *Facts) { f.Rules.Legacy = true }, "rules", Unknown, "iptables-legacy-save"},
	} {
		f := healthy()
		tt.damage(f)
		findings := Diagnose(f)
		if got := Worst(findings); got != tt.worst {
			t.Errorf("%s: worst is %s, want %s: %+v", name, got, tt.worst, findings)
		}
		found := false
		for _, x := range findings {
			if x.Severity != OK && x.Check != tt.check {
				t.Errorf("%s: %s complains, too: %+v", name, x.Check, x)
			}
			found = found || x.Check == tt.check && x.Severity == tt.worst && strings.Contains(x.Message+" "+x.Remedy, tt.says)
			if x.Severity != OK && x.Remedy == "" && x.Check != "ping" {
				t.Errorf("%s: no remedy in %+v", name, x)
			}
		}
		if !found {
			t.Errorf("%s: nothing in %s says %q: %+v", name, tt.check, tt.says, findings)
		}
	}
}

// An offset within the margin of the measurement is not reported.
func TestClockMargin(t *testing.T) {
	f := healthy()
	f.API.Offset, f.API.Margin = 4*time.Second, 3*time.Second
	if got := Worst(checkClock(f)); got != OK {
		t.Errorf("got %s", got)
	}
}

func TestKubeProxys(t *testing.T) {
	for _, c := range []struct {
		table, chain string
		want         bool
	}{
		{"nat", "KUBE-SERVICES", true}, {"nat", "KUBE-SVC-ERIFXISQEP7F7OF4", true}, {"nat", "KUBE-NODEPORTS", true}, {"kube-proxy", "services", true},
		{"nat", "POSTROUTING", false}, {"nat", "KUBE-KUBELET-CANARY", false}, {"filter", "KUBE-FIREWALL", false}, {"nat", "DOCKER", false},
	} {
		if got := kubeProxys(c.table, c.chain); got != c.want {
			t.Errorf("%s %s: %v", c.table, c.chain, got)
		}
	}
}
