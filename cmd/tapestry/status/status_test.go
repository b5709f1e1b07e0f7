package status

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/visible/visibletest"
)

func sample(now time.Time) report {
	return report{
		Node: localapi.Node{
			Name: "n1", Version: "v1", Started: now.Add(-time.Hour), Updated: now.Add(-3 * time.Second), Source: "manifests in /m",
			Restarts: 2, LastEnd: "killed by signal 9 (killed)", LastEnded: now.Add(-3 * time.Second),
			Missing: []string{"packets: timed out", "more"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, MTU: 1420, DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Descriptors: localapi.Descriptors{Limit: 20000, InUse: 41, Useful: 16384},
		},
		Peers: []localapi.Peer{
			{Name: "n2", PublicKey: "k", Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), HandshakeAge: 61 * time.Second, AnswerAge: time.Second, MTU: 1440, Received: 1500, Sent: 999},
			{Name: "n3", PublicKey: "k", HandshakeAge: -1, AnswerAge: -1},
			{Name: "n4", PublicKey: "k", Endpoint: netip.MustParseAddrPort("[2001:db8::4]:51820"), Silent: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.4:51820")}, MTU: 1420},
		},
		Pods:     []localapi.Pod{{Name: "d/p", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.3")}, FromBytes: 2_500_000, Offloads: "csum"}},
		Problems: []localapi.Problem{{Severity: "error", Text: "Service d/s: spec.ports: is empty"}},
		Counters: counter.List{
			counter.By(counter.Total, "tapestry_drops_total", "", "reason", map[string]int{"no-route": 2, "malformed": 0, "spoofed": 1}),
			counter.By(counter.Total, "tapestry_flows_freed_total", "", "why", map[string]int{"expired": 7, "from-most": 3, "crowded": 0}),
			counter.One(counter.Gauge, "tapestry_services", "", 3), counter.One(counter.Gauge, "tapestry_endpoints", "", 5),
			counter.One(counter.Gauge, "tapestry_node_ports", "", 2), counter.One(counter.Gauge, "tapestry_host_ports", "", 1),
		},
	}
}

// words has one space between all words: columns are as wide as what is in them.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestPrint(t *testing.T) {
	now := time.Unix(10000, 0)
	r := sample(now)
	var out strings.Builder
	if err := r.print(&out, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Node n1 (192.0.2.1)", "Ready no: packets: timed out more", "Agent v1, for 1h0m0s Restarts 2, the last one 3s ago: killed by signal 9 (killed)", "Descriptors 41 of 20000 in use", "from manifests in /m, in force for 3s",
		"Privileges none: processes of the host do not reach pods", "10.244.1.0/24, MTU 1420", "Cluster DNS 10.96.0.10",
		"3 with 5 endpoints, 2 node ports, 1 hostPorts", "Flows none", "Flows freed expired=7 from-most=3", "Drops no-route=2 spoofed=1 PEER",
		"n2 192.0.2.2:51820 1m1s ago 1s ago 1440 1.5 kB 999 B", "n3 never heard never never",
		"n4 [2001:db8::4]:51820 (silent: 192.0.2.4:51820) ",
		"d/p 10.244.1.3 2.5 MB 0 B 0 0 - - csum", "PROBLEMS Service d/s: spec.ports: is empty",
	} {
		if !strings.Contains(words(out.String()), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
	// Before the first snapshot there is little to tell.
	out.Reset()
	r = report{Node: localapi.Node{Name: "n1", Version: "v1", Started: now, Source: "API server", Missing: []string{"cluster: waiting for nodes"}}}
	if err := r.print(&out, now); err != nil {
		t.Fatal(err)
	}
	if got := words(out.String()); got != "Node n1 () Ready no: cluster: waiting for nodes Agent v1, for 0s Objects from API server, not in force yet" {
		t.Errorf("got %s", got)
	}
}

func TestPrivileges(t *testing.T) {
	for _, host := range []bool{false, true} {
		got := privileges(&localapi.Node{HostTAP: host})
		if strings.Contains(got, "none") != !host || strings.Contains(got, "do not reach") == host {
			t.Errorf("host TAP %v: %s", host, got)
		}
	}
	if got := privileges(&localapi.Node{HostProxy: "127.0.0.1:1080"}); !strings.Contains(got, "none") || !strings.HasSuffix(got, "at 127.0.0.1:1080") {
		t.Errorf("with a host proxy: %s", got)
	}
}

// The tiers of docs/loadbalancer.md, as people and as programs see them.
func TestBalancers(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("198.18.7.0/24"), netip.MustParsePrefix("2001:db8:1b::/64")}
	for _, tc := range []struct {
		of         localapi.LoadBalancers
		text, json string
	}{
		{localapi.LoadBalancers{Tier: localapi.HostSockets}, "host sockets: addresses of nodes only", `"loadBalancers": { "tier": "host-sockets" }`},
		{
			localapi.LoadBalancers{Tier: localapi.HostSockets, Announcers: []string{"l2"}},
			"host sockets: addresses of nodes only", `"loadBalancers": { "tier": "host-sockets", "announcers": [ "l2" ] }`,
		},
		{
			localapi.LoadBalancers{Tier: localapi.HostTAP, Ranges: ranges},
			"host TAP: addresses in 198.18.7.0/24,2001:db8:1b::/64, where the network brings them to this node",
			`"loadBalancers": { "tier": "host-tap", "ranges": [ "198.18.7.0/24", "2001:db8:1b::/64" ] }`,
		},
		{
			localapi.LoadBalancers{Tier: localapi.HostTAP, Ranges: ranges[:1], Announcers: []string{"bgp"}},
			"host TAP: addresses in 198.18.7.0/24, where the network brings them to this node; routers are told by BGP",
			`"loadBalancers": { "tier": "host-tap", "ranges": [ "198.18.7.0/24" ], "announcers": [ "bgp" ] }`,
		},
		{
			localapi.LoadBalancers{Tier: localapi.Announced, Ranges: ranges[:1], Announcers: []string{"l2"}},
			"announced: addresses in 198.18.7.0/24, by ARP and NDP",
			`"loadBalancers": { "tier": "announced", "ranges": [ "198.18.7.0/24" ], "announcers": [ "l2" ] }`,
		},
		{
			localapi.LoadBalancers{Tier: localapi.Announced, Ranges: ranges[:1], Announcers: []string{"bgp", "l2"}},
			"announced: addresses in 198.18.7.0/24, by ARP and NDP, and to routers by BGP",
			`"tier": "announced", "ranges": [ "198.18.7.0/24" ], "announcers": [ "bgp", "l2" ]`,
		},
	} {
		r := sample(time.Now())
		r.Node.LoadBalancers = tc.of
		for format, want := range map[string]string{"table": "Load balancers " + tc.text + " Pod ranges", "json": tc.json} {
			args := []string{}
			if format == "json" {
				args = []string{"-o", "json"}
			}
			if out, _ := run(t, r, args...); !strings.Contains(words(out), want) { // exit status 1: it is not ready
				t.Errorf("%+v, %s: %q is missing in:\n%s", tc.of, format, want, out)
			}
		}
	}
}

// filled returns a table with one row that is full of hostile text.
func filled[T any](table localapi.Table[T]) localapi.Source {
	return table.From(func(context.Context) ([]T, error) {
		list := make([]T, 1)
		visibletest.Fill(&list[0])
		return list, nil
	})
}

// run runs the command against an agent that tells r.
func run(t *testing.T, r report, args ...string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := localapi.Listen(path, localapi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &localapi.Server{Node: func(context.Context) localapi.Node { return r.Node }, Tables: []localapi.Source{
		localapi.Peers.From(func(context.Context) ([]localapi.Peer, error) { return r.Peers, nil }),
		localapi.Pods.From(func(context.Context) ([]localapi.Pod, error) { return r.Pods, nil }),
		filled(localapi.Frontends),
		localapi.Problems.From(func(context.Context) ([]localapi.Problem, error) { return r.Problems, nil }),
		filled(localapi.DescriptorShares),
		filled(localapi.Policies), filled(localapi.StagedFlows),
		localapi.Turns.From(func(context.Context) ([]announce.Turn, error) { return r.Turns, nil }),
		filled(localapi.Claims), filled(localapi.Routes),
		localapi.Sessions.From(func(context.Context) ([]announce.Session, error) { return r.Sessions, nil }),
		localapi.Counters.From(func(context.Context) ([]counter.Counter, error) { return r.Counters, nil }),
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var out strings.Builder
	app := &cli.App{Writer: &out, ErrWriter: io.Discard, Commands: []*cli.Command{Command()}, ExitErrHandler: func(*cli.Context, error) {}}
	err = app.RunContext(t.Context(), append([]string{"tapestry", "status", "--socket", path}, args...))
	return out.String(), err
}

func TestCommand(t *testing.T) {
	r := sample(time.Now())
	for _, tc := range []struct {
		args []string
		want string // in the output
		err  string
	}{
		{nil, "Ready no: packets: timed out", ""}, // and exit status 1
		{[]string{"-o", "json"}, `"peers": [ { "name": "n2"`, ""},
		{[]string{"--table", "pods"}, "POD ADDRESSES SENT RECEIVED LOST OVER LIMIT OVER PACKETS OVER FLOWS OFFLOADS d/p 10.244.1.3", ""},
		{[]string{"--table", "problems", "-o", "json"}, `[ { "severity": "error", "text": "Service d/s: spec.ports: is empty" } ]`, ""},
		{[]string{"--table", "counters"}, "tapestry_drops_total no-route=2 spoofed=1", ""},
		{[]string{"--table", "pod"}, "", `there is no table "pod": expected one of`},
		{[]string{"--socket", filepath.Join(os.TempDir(), "nobody.sock")}, "", "check that the agent runs on this node"},
	} {
		out, err := run(t, r, tc.args...)
		if !strings.Contains(words(out), tc.want) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%q: %v\n%s", tc.args, err, out)
		}
		if exit, ok := err.(cli.ExitCoder); tc.args == nil && (!ok || exit.ExitCode() != 1) {
			t.Errorf("a node that is not ready: %v", err)
		}
	}
}
