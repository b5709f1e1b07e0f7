package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/probe"
	"tapestry.dev/tapestry/test/serve"
)

// answers is the output of 'probe resolve'.
type answers struct {
	Answers []string
	Error   string
}

func clusterDNS(ctx context.Context, c *Cluster) (string, error) {
	dashed := strings.ReplaceAll(c.ips["far"].v4.String(), ".", "-")
	for _, q := range []struct {
		kind, name string
		want       []string
	}{
		{"host", "web", []string{c.ips["svc/web"].v4.String(), c.ips["svc/web"].v6.String()}},
		{"host", "web.default.svc.cluster.local", []string{c.ips["svc/web"].v4.String(), c.ips["svc/web"].v6.String()}},
		{"host", "peers", []string{c.ips["far"].v4.String(), c.ips["far"].v6.String()}},
		{"host", "far.peers", []string{c.ips["far"].v4.String(), c.ips["far"].v6.String()}},
		{"host", dashed + ".default.pod.cluster.local", []string{c.ips["far"].v4.String()}},
		{"srv", "_http._tcp.web.default.svc.cluster.local", []string{"web.default.svc.cluster.local:80"}},
		{"ptr", c.ips["svc/web"].v4.String(), []string{"web.default.svc.cluster.local"}},
		{"cname", "elsewhere.default.svc.cluster.local", []string{"outside.example"}},
		{"host", "elsewhere", []string{c.ips["beyond"].v4.String(), c.ips["beyond"].v6.String()}},
		{"host", "outside.example", []string{c.ips["beyond"].v4.String(), c.ips["beyond"].v6.String()}},
		{"host", "no-such-service", nil},
	} {
		var got answers
		if err := c.probe(ctx, lab.Pod("client"), &got, "resolve", q.kind, q.name); err != nil {
			return "", err
		}
		slices.Sort(q.want)
		if !slices.Equal(got.Answers, q.want) {
			return "", fmt.Errorf("%s %s: %v %s, want %v", q.kind, q.name, got.Answers, got.Error, q.want)
		}
	}
	return "Service, headless, pod, SRV, PTR, ExternalName, and outside.example from the upstream", nil
}

func egress(ctx context.Context, c *Cluster) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, err := c.start(ctx, lab.Outside(), "serve-ready", "--name", "outside")
	if err != nil {
		return "", err
	}
	defer server.stop(cancel)
	for _, network := range []string{"tcp", "udp"} {
		// Outside, all traffic of a node's pods comes from the node's address.
		if err := c.sees(ctx, lab.Pod("client"), network, at(c.ips["beyond"].v4, 9000), seen{"outside", c.ips["node-1"].v4}); err != nil {
			return "", err
		}
	}
	var a probe.Answer
	if err := c.probe(ctx, lab.Pod("client"), &a, "ask", "tcp", at(c.ips["beyond"].v4, 9)); err != nil || a.Error != "refused" {
		return "", errors.Join(err, fmt.Errorf("a closed port outside: %q, want it refused", a.Error))
	}
	var ping probe.Answer
	if err := c.probe(ctx, lab.Pod("client"), &ping, "ping", c.ips["beyond"].v4.String()); err != nil || ping.Error != "" {
		return "", errors.Join(err, errors.New("ping: "+ping.Error))
	}
	return fmt.Sprintf("client reaches %s, which sees node-1's address; ping answered in %.1f ms", c.ips["beyond"].v4, ping.Millis), nil
}

// stall limits how long a connection may be silent while an agent restarts. It does not count the time in which the
// machine lets nobody run.
const stall = time.Second

func restart(ctx context.Context, c *Cluster) (string, error) {
	targets := map[string]string{
		"pod to pod here":          at(c.ips["web-1"].v4, 9000),
		"pod to pod across":        at(c.ips["web-2"].v4, 9000),
		"ClusterIP":                at(c.ips["svc/one"].v4, 81),
		"ClusterIP over IPv6":      at(c.ips["svc/one"].v6, 81),
		"pod to pod across, IPv6 ": at(c.ips["web-2"].v6, 9000),
	}
	held := map[string]*background{}
	for name, addr := range targets {
		b, err := c.hold(ctx, lab.Pod("client"), addr)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		held[name] = b
	}
	other, err := c.hold(ctx, lab.Pod("far"), at(c.ips["web-2"].v4, 9000))
	if err != nil {
		return "", err
	}
	before, err := c.agentOf(ctx, "node-1")
	if err != nil {
		return "", err
	}
	if err := c.KillAgent(ctx, "node-1", syscall.SIGKILL, false); err != nil {
		return "", err
	}
	if err := c.WaitFor(ctx, func(s *lab.Status) bool {
		n := nodeOf(s, "node-1")
		return n != nil && n.Agent == "ready" && n.PID != before.PID
	}); err != nil {
		return "", err
	}
	other.letGo()
	for _, b := range held {
		b.letGo()
	}
	var worst float64
	for name, b := range held {
		var h probe.Held
		if err := b.wait(ctx, &h); err != nil {
			return "", err
		}
		if h.Error != "" {
			return "", fmt.Errorf("%s: broken after %d rounds: %s", name, h.Rounds, h.Error)
		}
		worst = max(worst, h.WorstMillis)
	}
	var h probe.Held
	if err := other.wait(ctx, &h); err != nil || h.Error != "" {
		return "", errors.Join(err, fmt.Errorf("a connection on the other node: %s", h.Error))
	}
	if worst > float64(stall.Milliseconds()) {
		return "", fmt.Errorf("a connection stalled %.0f ms, want less than %v", worst, stall)
	}
	return fmt.Sprintf("%d connections went on, the longest silence was %.0f ms; on the other node %.0f ms", len(held), worst, h.WorstMillis), nil
}

func nodeOf(s *lab.Status, name string) *lab.NodeStatus {
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i]
		}
	}
	return nil
}

func (c *Cluster) agentOf(ctx context.Context, name string) (lab.NodeStatus, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return lab.NodeStatus{}, err
	}
	if n := nodeOf(st, name); n != nil {
		return *n, nil
	}
	return lab.NodeStatus{}, fmt.Errorf("there is no node %s", name)
}

func nodePort(ctx context.Context, c *Cluster) (string, error) {
	ports := map[string]uint16{"near": 30081, "far": 30082}
	err := families(func(v6 bool) error {
		for pod, port := range ports {
			for _, node := range []string{"node-1", "node-2"} {
				for _, network := range []string{"tcp", "udp"} {
					if err := c.sees(ctx, lab.Outside(), network, at(c.ips[node].of(v6), port), seen{pod, c.ips["outside"].of(v6)}); err != nil {
						return err
					}
				}
			}
			local := netip.MustParseAddr("127.0.0.1")
			if v6 {
				local = netip.IPv6Loopback()
			}
			for _, network := range []string{"tcp", "udp"} {
				if err := c.sees(ctx, lab.Node("node-1"), network, at(local, port), seen{pod, c.ips["node-1"].of(v6)}); err != nil {
					return fmt.Errorf("from localhost: %w", err)
				}
			}
		}
		return c.sameClientPort(ctx, v6)
	})
	return fmt.Sprintf("ports 30081 (pod on node-1) and 30082 (pod on node-2), on both nodes and localhost: the pod sees %s", c.ips["outside"].v4), err
}

// sameClientPort holds connections from one client port through both nodes to the same pod.
func (c *Cluster) sameClientPort(ctx context.Context, v6 bool) error {
	var held []*background
	for _, node := range []string{"node-1", "node-2"} {
		b, err := c.hold(ctx, lab.Outside(), "--local-port", clientPort, at(c.ips[node].of(v6), 30082))
		if err != nil {
			return fmt.Errorf("one client port through %s: %w", node, err)
		}
		held = append(held, b)
	}
	for _, b := range held {
		b.letGo()
	}
	for _, b := range held {
		var h probe.Held
		if err := b.wait(ctx, &h); err != nil || h.Error != "" {
			return errors.Join(err, fmt.Errorf("one client port through two nodes: %s", h.Error))
		}
	}
	return nil
}

func loadBalancer(ctx context.Context, c *Cluster) (string, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return "", err
	}
	var given []string
	for _, s := range st.Services {
		if s.Name == "balanced" {
			given = s.Outside
		}
	}
	if len(given) != 4 {
		return "", fmt.Errorf("it was given %q, want both addresses of both nodes", given)
	}
	for _, text := range given {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return "", err
		}
		for _, network := range []string{"tcp", "udp"} {
			if err := c.sees(ctx, lab.Outside(), network, at(a, 8081), seen{"far", c.ips["outside"].of(a.Is6())}); err != nil {
				return "", err
			}
		}
	}
	return fmt.Sprintf("port 8081 at %s and both nodes' other addresses: the pod on node-2 sees %s", given[0], c.ips["outside"].v4), nil
}

func ingressStep(ctx context.Context, c *Cluster) (string, error) {
	node := c.ips["node-2"].v4
	for _, q := range []struct {
		url, pod string
		http2    bool
	}{
		{"http://shop.example/", "web", false},
		{"http://shop.example/near/you", "near", false},
		{"http://shop.example/nearby", "web", false},
		{"http://shop.example/far", "far", false},
		{"http://shop.example/far/away", "web", false},
		{"http://other.example/", "client", false},
		{"https://shop.example/", "web", false},
		{"https://shop.example/far", "far", true},
		{"http://shop.example/far", "far", true},
	} {
		a, got, err := c.get(ctx, q.url, node, q.http2)
		if err != nil {
			return "", err
		}
		want := "HTTP/1.1"
		if q.http2 {
			want = "HTTP/2.0"
		}
		https := strings.HasPrefix(q.url, "https:")
		switch {
		case !strings.HasPrefix(a.Pod, q.pod):
			return "", fmt.Errorf("%s was answered by %s, want %s", q.url, a.Pod, q.pod)
		case got.Proto != want:
			return "", fmt.Errorf("%s was answered in %s, want %s", q.url, got.Proto, want)
		case https && got.Certificate != "shop.example":
			return "", fmt.Errorf("%s: the certificate is for %q", q.url, got.Certificate)
		case a.Header.Get("X-Forwarded-For") != c.ips["outside"].v4.String():
			return "", fmt.Errorf("%s: X-Forwarded-For is %q, want %s", q.url, a.Header.Get("X-Forwarded-For"), c.ips["outside"].v4)
		case https != (a.Header.Get("X-Forwarded-Proto") == "https"):
			return "", fmt.Errorf("%s: X-Forwarded-Proto is %q", q.url, a.Header.Get("X-Forwarded-Proto"))
		}
	}
	for _, url := range []string{"http://shop.example/ws", "https://shop.example/ws"} {
		var ws struct{ Text, Error string }
		port := uint16(80)
		if strings.HasPrefix(url, "https:") {
			port = 443
		}
		if err := c.probe(ctx, lab.Outside(), &ws, "websocket", "--connect", at(node, port), "--message", "over a socket", url); err != nil {
			return "", err
		}
		if ws.Error != "" || !strings.Contains(ws.Text, "over a socket") {
			return "", fmt.Errorf("%s: WebSocket: %s %s", url, ws.Text, ws.Error)
		}
	}
	return "Exact and Prefix paths, default backend, certificate by SNI, WebSocket, HTTP/2 with and without TLS, X-Forwarded-*", nil
}

// get fetches a URL from outside through a node, and decodes the pod's answer.
func (c *Cluster) get(ctx context.Context, url string, node netip.Addr, http2 bool) (a serve.Answer, got probe.Fetched, err error) {
	port := uint16(80)
	if strings.HasPrefix(url, "https:") {
		port = 443
	}
	args := []string{"get", "--connect", at(node, port)}
	if http2 {
		args = append(args, "--http2")
	}
	if err := c.probe(ctx, lab.Outside(), &got, append(args, url)...); err != nil {
		return a, got, err
	}
	if got.Error != "" || got.Status != 200 {
		return a, got, fmt.Errorf("%s: status %d %s %s", url, got.Status, got.Error, got.Body)
	}
	if err := json.Unmarshal([]byte(got.Body), &a); err != nil {
		return a, got, fmt.Errorf("%s: %w", url, err)
	}
	return a, got, nil
}

func pathMTU(ctx context.Context, c *Cluster) (detail string, err error) {
	// The second MTU is smaller, so that the first one's result does not help. Without ICMP the mesh must find the MTU
	// itself.
	with, err := c.learnMTU(ctx, impair.Config{MTU: 1400, ICMP: true})
	if err != nil {
		return "", err
	}
	without, err := c.learnMTU(ctx, impair.Config{MTU: 1360})
	return fmt.Sprintf("underlay of 1400 with ICMP: the pod learned %d; of 1360 without: %d", with, without), err
}

// learnMTU reduces the underlay's MTU, sends large DF packets across it from a pod, and returns the path MTU that the
// pod's kernel then has.
func (c *Cluster) learnMTU(ctx context.Context, underlay impair.Config) (mtu int, err error) {
	if err := c.Impair(ctx, "node-1", "node-2", underlay); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Unimpair(ctx, "node-1", "node-2")) }()
	var got struct{ MTU int }
	largest := underlay.MTU - 60 // WireGuard over IPv4
	clock := awake.Start()
	defer clock.Stop()
	for got.MTU = underlay.MTU; got.MTU > largest && clock.Now() < 8*time.Second; {
		if err := c.probe(ctx, lab.Pod("client"), &got, "pmtu", "--timeout", "1s", at(c.ips["far"].v4, 9000)); err != nil {
			return 0, err
		}
	}
	if got.MTU > largest || got.MTU < largest-20 {
		return got.MTU, fmt.Errorf("underlay of %d bytes, ICMP %v: the pod believes in %d, want %d or a little less", underlay.MTU, underlay.ICMP, got.MTU, largest)
	}
	return got.MTU, nil
}

func hostTAP(ctx context.Context, c *Cluster) (string, error) {
	err := families(func(v6 bool) error {
		// A process in the node's namespace uses the host TAP's address, which is the second of the node's pod range.
		own, err := c.hostAddr(ctx, "node-1", v6)
		if err != nil {
			return err
		}
		for _, q := range []struct {
			addr netip.Addr
			port uint16
			pod  string
		}{
			{c.ips["near"].of(v6), 9000, "near"},
			{c.ips["far"].of(v6), 9000, "far"},
			{c.ips["svc/edge-far"].of(v6), 81, "far"},
		} {
			for _, network := range []string{"tcp", "udp"} {
				if err := c.sees(ctx, lab.Node("node-1"), network, at(q.addr, q.port), seen{q.pod, own}); err != nil {
					return err
				}
			}
		}
		return c.podsReachNodes(ctx, v6)
	})
	return "node-1 reaches pods here and there and a ClusterIP; a pod reaches both nodes, which see its own address", err
}

func (c *Cluster) hostAddr(ctx context.Context, node string, v6 bool) (netip.Addr, error) {
	n, err := c.agentOf(ctx, node)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, cidr := range n.PodCIDRs {
		if cidr.Addr().Is6() == v6 {
			return addressing.Host(cidr), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("node %s has no range of that family", node)
}

func (c *Cluster) podsReachNodes(ctx context.Context, v6 bool) error {
	for _, node := range []string{"node-1", "node-2"} {
		serving, cancel := context.WithCancel(ctx)
		server, err := c.start(serving, lab.Node(node), "serve-ready", "--name", node)
		if err == nil {
			err = c.sees(ctx, lab.Pod("client"), "tcp", at(c.ips[node].of(v6), 9000), seen{node, c.ips["client"].of(v6)})
			server.stop(cancel)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("a pod to %s: %w", node, err)
		}
	}
	return nil
}

func noRules(ctx context.Context, c *Cluster) (string, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return "", err
	}
	places := map[string]lab.Target{"outside": lab.Outside()}
	for _, n := range st.Nodes {
		places["node "+n.Name] = lab.Node(n.Name)
	}
	for _, p := range st.Pods {
		places["pod "+p.Key()] = lab.Pod(p.Key())
	}
	empty := func(name string, where lab.Target, flags ...string) error {
		var got struct{ Tables []string }
		if err := c.probe(ctx, where, &got, append([]string{"rulesets"}, flags...)...); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(got.Tables) > 0 {
			return fmt.Errorf("%s has packet filter tables: %v", name, got.Tables)
		}
		return nil
	}
	for name, where := range places {
		if err := empty(name, where); err != nil {
			return "", err
		}
	}
	// The bridge between the nodes is in the supervisor's own namespace.
	if err := empty("the underlay", lab.Outside(), "--pid", strconv.Itoa(st.PID)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d namespaces looked at, all empty", len(places)+1), nil
}
