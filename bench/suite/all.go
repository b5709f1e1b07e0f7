package suite

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/baseline"
	"tapestry.dev/tapestry/bench/labs"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/bench/scale"
	"tapestry.dev/tapestry/test/lab"
)

// All returns all suites, in the order in which they run.
func All() []Suite {
	all := []Suite{pod(), service(), crossNode(), nodePort(), loadBalancer(), egress(), ingress(), dns(), scaleSuite(), memory()}
	for i := range all {
		all[i].complete()
	}
	return all
}

// complete fills in the names of the cases.
func (s *Suite) complete() {
	if s.cases == nil {
		return
	}
	for _, c := range s.cases(s.Time) {
		s.Cases = append(s.Cases, c.Name)
	}
	for _, c := range s.all(s.Time)[len(s.Cases):] {
		s.Programs = append(s.Programs, c.Name)
	}
}

// ours is a subject that is a path through a lab.
func ours(spec labs.Spec, path labs.Path) Subject {
	return Subject{Name: path.Name, Ours: true, open: func(ctx context.Context, s *site) (bench.Topology, error) {
		l, err := s.lab(ctx, spec)
		if err != nil {
			return nil, err
		}
		path.To = maps.Clone(path.To)
		maps.DeleteFunc(path.To, func(service bench.Service, _ labs.End) bool { return !s.services[service] })
		return l.Open(ctx, path)
	}}
}

// other is a subject that is a baseline.
func other(name string, make func(process.Spawn) (bench.Topology, error)) Subject {
	return Subject{
		Name: name,
		open: func(_ context.Context, s *site) (bench.Topology, error) { return make(s.spawn) },
		try: func(spawn process.Spawn) error {
			t, err := make(spawn)
			if err != nil {
				return err
			}
			return t.Close()
		},
	}
}

// unspawned adapts baselines that start no programs of bench's own.
func unspawned(make func() (bench.Topology, error)) func(process.Spawn) (bench.Topology, error) {
	return func(process.Spawn) (bench.Topology, error) { return make() }
}

// The baselines.
var (
	kernelBridge = other("kernel-bridge", unspawned(baseline.KernelBridge))
	nullLoop     = other("null-loop", baseline.NullLoop)
	veth         = other("veth", unspawned(baseline.Veth))
	vxlan        = other("vxlan", unspawned(baseline.VXLAN))
	wireGuard    = other("wireguard-go", baseline.WireGuard)
)

// behindHost returns the programs that rootless containers use in place of Tapestry.
func behindHost(d baseline.Direction) []Subject {
	return []Subject{
		other("pasta-"+string(d), unspawned(func() (bench.Topology, error) { return baseline.Pasta(d) })),
		other("slirp4netns-"+string(d), unspawned(func() (bench.Topology, error) { return baseline.Slirp4netns(d) })),
	}
}

// kubeProxy is a node with the rules that kube-proxy makes for 10,000 Services.
func kubeProxy(mode baseline.Mode) Subject {
	const services = 10000
	of := func(n int) func(process.Spawn) (bench.Topology, error) {
		return unspawned(func() (bench.Topology, error) { return baseline.ServiceNAT(mode, n) })
	}
	s := other(fmt.Sprintf("kube-proxy-%s-%d", mode, services), of(services))
	// The kernel takes long to load all rules. One Service is enough to find out whether they can be loaded.
	s.try = other(s.Name, of(1)).try
	return s
}

// Where clients and servers are, in the terms of package labs.
var (
	client  = lab.Pod("client")
	near    = lab.Pod("near")
	far     = lab.Pod("far")
	outside = lab.Outside()
)

// loadAt leads to the load generator's server at an address.
func loadAt(host string, port uint16) map[bench.Service]labs.End {
	return map[bench.Service]labs.End{bench.Load: {Host: host, Port: port}}
}

// podAt leads to the load generator's server and to iperf3's.
func podAt(host string) map[bench.Service]labs.End {
	to := loadAt(host, bench.LoadPort)
	to[bench.IPerf3] = labs.End{Host: host, Port: bench.IPerf3Port}
	return to
}

// transport returns the cases of everything below L7.
func transport(d time.Duration) []bench.Case {
	return append(bench.TCPCases(d), bench.UDPCases(d)...)
}

func pod() Suite {
	spec := labs.Spec{Name: "pod", Nodes: 1}
	return Suite{
		Name: "pod", About: "pod to pod on one node", Time: 300 * time.Millisecond, cases: transport, programs: bench.IPerf3Cases,
		Subjects: []Subject{
			ours(spec, labs.Path{Name: "same-node", Client: client, Server: near, To: podAt("pod/near")}),
			nullLoop, kernelBridge, veth,
		},
		baselines: map[string][]string{
			"same-node": {"null-loop", "kernel-bridge"}, "null-loop": {"kernel-bridge"}, "kernel-bridge": {"veth"},
		},
	}
}

// service has a lab for each number of Services. All labs are up at once, so that measurements of different numbers
// alternate.
func service() Suite {
	s := Suite{
		Name: "service", About: "pod to pod through a ClusterIP, with 1, 1,000 and 10,000 other Services", Time: 200 * time.Millisecond,
		setUp: 20 * time.Second,
		cases: transport, baselines: map[string][]string{},
	}
	for _, n := range []struct {
		suffix   string
		services int
	}{{"1", 1}, {"1000", 1000}, {"10000", 10000}} {
		spec := labs.Spec{Name: "service-" + n.suffix, Nodes: 1, Services: n.services}
		direct, name := "direct-"+n.suffix, "cluster-ip-"+n.suffix
		s.Subjects = append(s.Subjects,
			ours(spec, labs.Path{Name: direct, Client: client, Server: near, To: loadAt("pod/near", bench.LoadPort)}),
			ours(spec, labs.Path{Name: name, Client: client, Server: near, To: loadAt("service/near", bench.LoadPort)}))
		s.baselines[name] = []string{direct}
		if n.services > 1 {
			s.baselines[name] = append(s.baselines[name], "cluster-ip-1")
		}
	}
	// One number is enough to see what the tables cost where nothing is translated.
	s.Subjects = slices.DeleteFunc(s.Subjects, func(t Subject) bool { return t.Name == "direct-1000" })
	s.baselines["cluster-ip-1000"] = []string{"cluster-ip-1"}
	for _, mode := range []baseline.Mode{baseline.IPTables, baseline.NFTables} {
		proxy := kubeProxy(mode)
		s.Subjects = append(s.Subjects, proxy)
		s.baselines["cluster-ip-10000"] = append(s.baselines["cluster-ip-10000"], proxy.Name)
	}
	return s
}

func crossNode() Suite {
	spec := labs.Spec{Name: "cross-node", Nodes: 2}
	return Suite{
		Name: "cross-node", About: "pod to pod on two nodes, through WireGuard", Time: 300 * time.Millisecond, cases: transport, programs: bench.IPerf3Cases,
		Subjects: []Subject{
			ours(spec, labs.Path{Name: "across-nodes", Client: client, Server: far, To: podAt("pod/far")}),
			ours(spec, labs.Path{Name: "cluster-ip-across", Client: client, Server: far, To: loadAt("service/far", bench.LoadPort)}),
			wireGuard, vxlan,
		},
		baselines: map[string][]string{"across-nodes": {"wireguard-go", "vxlan"}, "wireguard-go": {"vxlan"}, "cluster-ip-across": {"across-nodes"}},
	}
}

func nodePort() Suite {
	spec := labs.Spec{Name: "nodeport", Nodes: 2}
	return Suite{
		Name: "nodeport", About: "from outside through a node's port to a pod", Time: 200 * time.Millisecond, cases: transport,
		Subjects: append([]Subject{
			ours(spec, labs.Path{Name: "node-port", Client: outside, Server: near, To: loadAt("node/node-1", labs.NearPort)}),
			ours(spec, labs.Path{Name: "node-port-across", Client: outside, Server: far, To: loadAt("node/node-1", labs.FarPort)}),
			kernelBridge,
		}, behindHost(baseline.Port)...),
		baselines: map[string][]string{"node-port": {"pasta-port", "slirp4netns-port", "kernel-bridge"}, "node-port-across": {"node-port"}},
	}
}

// loadBalancer compares the way by the host TAP, which the node's kernel forwards to, with that of a pod to a
// ClusterIP.
func loadBalancer() Suite {
	spec := labs.Spec{Name: "loadbalancer", Nodes: 2, Balancers: true}
	return Suite{
		Name: "loadbalancer", About: "from outside to a load balancer's address, which the node forwards into its host TAP", Time: 150 * time.Millisecond, cases: bench.TCPCases,
		Subjects: []Subject{
			ours(spec, labs.Path{Name: "load-balancer", Client: outside, Server: near, To: loadAt("balancer/near", bench.LoadPort)}),
			ours(spec, labs.Path{Name: "load-balancer-across", Client: outside, Server: far, To: loadAt("balancer/far", bench.LoadPort)}),
			ours(spec, labs.Path{Name: "cluster-ip", Client: client, Server: near, To: loadAt("service/near", bench.LoadPort)}),
			ours(spec, labs.Path{Name: "cluster-ip-across", Client: client, Server: far, To: loadAt("service/far", bench.LoadPort)}),
		},
		baselines: map[string][]string{"load-balancer": {"cluster-ip"}, "load-balancer-across": {"cluster-ip-across"}},
	}
}

func egress() Suite {
	spec := labs.Spec{Name: "egress", Nodes: 1}
	return Suite{
		Name: "egress", About: "from a pod to a server outside of the cluster", Time: 200 * time.Millisecond, cases: transport,
		Subjects: append([]Subject{
			ours(spec, labs.Path{Name: "egress", Client: client, Server: outside, To: loadAt("outside", bench.LoadPort)}),
			kernelBridge,
		}, behindHost(baseline.Egress)...),
		baselines: map[string][]string{"egress": {"pasta-egress", "slirp4netns-egress", "kernel-bridge"}},
	}
}

func ingress() Suite {
	spec := labs.Spec{Name: "ingress", Nodes: 1, Ingress: true}
	return Suite{
		Name: "ingress", About: "from outside through Ingress to a pod", Time: 250 * time.Millisecond, cases: bench.HTTPCases, programs: bench.WrkCases,
		Subjects: []Subject{
			ours(spec, labs.Path{Name: "ingress", Client: outside, Server: near, To: map[bench.Service]labs.End{
				bench.HTTP: {Host: "node/node-1", Port: 80}, bench.HTTPS: {Host: "node/node-1", Port: 443},
			}}),
			// The same way without a proxy.
			ours(spec, labs.Path{Name: "node-port", Client: outside, Server: near, To: map[bench.Service]labs.End{
				bench.HTTP: {Host: "node/node-1", Port: labs.NearHTTPPort},
			}}),
			other("nginx", unspawned(baseline.Nginx)),
			other("haproxy", unspawned(baseline.HAProxy)),
			other("caddy", unspawned(baseline.Caddy)),
			other("direct", unspawned(baseline.Direct)),
		},
		baselines: map[string][]string{"ingress": {"nginx", "haproxy", "caddy", "direct"}, "node-port": {"direct"}},
	}
}

func dns() Suite {
	const services = 1000
	spec := labs.Spec{Name: "dns", Nodes: 1, Services: services}
	return Suite{
		Name: "dns", About: "from a pod to the cluster's name server, with 1,000 Services", Time: 300 * time.Millisecond, cases: bench.DNSCases,
		Subjects: []Subject{
			ours(spec, labs.Path{Name: "cluster-dns", Client: client, To: map[bench.Service]labs.End{bench.DNS: {Host: "service/kube-dns", Port: 53}}}),
			other("coredns", unspawned(func() (bench.Topology, error) { return baseline.CoreDNS(services) })),
		},
		baselines: map[string][]string{"cluster-dns": {"coredns"}},
	}
}

func scaleSuite() Suite {
	return Suite{
		Name: "scale", About: "loading 100 to 10,000 Services of 10 endpoints, changing one, filling a flow table", Time: 100 * time.Second,
		alone: func(ctx context.Context, o Options) ([]bench.Row, error) { return scale.Run(ctx, o.scale("scale")) },
	}
}

func memory() Suite {
	return Suite{
		Name: "memory", About: "an agent's memory: idle, per pod, per flow, per peer", Time: 150 * time.Second,
		alone: func(ctx context.Context, o Options) ([]bench.Row, error) { return scale.Memory(ctx, o.scale("memory")) },
	}
}

// scale returns the options of the suites that measure agents alone. Each of their measurements takes as long as the
// thing it measures.
func (o Options) scale(suite string) scale.Options {
	return scale.Options{Rounds: o.Rounds, Progress: func(what string) { o.Progress(suite, 0, 0, what, "") }}
}
