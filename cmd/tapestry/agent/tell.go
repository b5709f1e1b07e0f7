package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/version"
)

// begun is when this process began, nearly.
var begun = time.Now()

// counters are everything that this agent counts, one source a line.
func (a *agent) counters() counter.List {
	build := counter.Counter{Name: "tapestry_build_info", Help: "Always 1; the labels say which agent this is.", Kind: counter.Gauge, Labels: []string{"version", "goversion"}}
	build.Values = []counter.Value{{Labels: []string{version.String(), runtime.Version()}, N: 1}}
	list := append(a.progress.Counters(), build)
	if !a.hasStarted() {
		return list
	}
	return slices.Concat(list,
		a.node.Counters(),
		a.pods.Counters(),
		a.countState(),
	)
}

// countState counts what the agent itself knows.
func (a *agent) countState() counter.List {
	problems := map[string]int{string(kube.Error): 0, string(kube.Warning): 0}
	shared, own := a.currentProblems()
	for _, p := range append(shared, own...) {
		problems[string(p.Severity)]++
	}
	return counter.List{
		counter.By(counter.Gauge, "tapestry_problems", "Problems with objects that this node sees, by severity.", "severity", problems),
		counter.One(counter.Gauge, "tapestry_state_age_seconds", "Time since a snapshot of the cluster was applied last.", time.Since(a.progress.Updated()).Seconds()),
		counter.One(counter.Gauge, "tapestry_source_age_seconds", "How old the state in force may be, since its source was not heard of; 0 while all is well.",
			a.source.State().Age.Seconds()),
	}
}

// serveLocalAPI answers whoever asks on this node, until ctx is done. A socket that cannot be had costs nothing but the answers.
func (a *agent) serveLocalAPI(ctx context.Context) {
	if a.localAPI == "" {
		return
	}
	o := localapi.Options{UIDs: append([]uint32{0, uint32(os.Geteuid())}, a.localAPIUIDs...), Log: a.log}
	l, err := localapi.Listen(a.localAPI, o)
	if err == nil {
		server := &localapi.Server{Node: a.describe, Options: o, Tables: []localapi.Source{
			localapi.Peers.From(a.peerRows),
			localapi.Pods.From(a.podRows),
			localapi.Problems.From(a.problemRows),
			localapi.Counters.From(func(context.Context) ([]counter.Counter, error) { return a.metrics.Counters() }),
		}}
		err = server.Serve(ctx, l)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error("tapestry status and doctor cannot ask this agent; choose another socket with --local-api", "err", err)
	}
}

// describe is what there is to tell of the node.
func (a *agent) describe(ctx context.Context) localapi.Node {
	n := localapi.Node{
		Name: a.agentConfig.node, Version: version.String(), Started: begun, PublicKey: a.held.Key.Public().String(),
		Missing: a.health.Missing(ctx), Source: a.sourceText(), Updated: a.progress.Updated(),
	}
	if server := a.source.State().Server; server != "" {
		n.APIServer = "https://" + server
	}
	if a.hasStarted() {
		c := &a.node.Config().Netstack
		n.HostPort, n.Addresses, n.PodCIDRs, n.MTU, n.DNS = a.node.HasHostPort(netip.Addr{}), c.NodeAddrs, c.PodCIDRs, c.MTU, c.LocalAddrs
	}
	return n
}

// sourceText says where the cluster's objects come from, and since when they do not.
func (a *agent) sourceText() string {
	if dir := a.agentConfig.source.manifests; dir != "" {
		return "manifests in " + dir
	}
	s := a.source.State()
	text := "API server " + s.Server
	if s.Age > 0 {
		text += fmt.Sprintf(", not heard of for %s", s.Age.Round(time.Second))
	}
	if s.Err != nil {
		text += fmt.Sprintf(" (%v)", s.Err)
	}
	return text
}

func (a *agent) peerRows(context.Context) (rows []localapi.Peer, _ error) {
	if !a.hasStarted() {
		return nil, nil
	}
	for _, p := range a.node.Peers() {
		row := localapi.Peer{
			Name: p.Name, Endpoint: p.Endpoint, HandshakeAge: p.HandshakeAge, AnswerAge: p.AnswerAge,
			Received: p.ReceivedBytes, Sent: p.SentBytes, MTU: p.MTU,
		}
		if !p.PublicKey.IsZero() {
			row.PublicKey = p.PublicKey.String()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (a *agent) podRows(context.Context) (rows []localapi.Pod, _ error) {
	if !a.hasStarted() {
		return nil, nil
	}
	for _, p := range a.node.Ports() {
		rows = append(rows, localapi.Pod{
			Name: p.Name, Addrs: p.Addrs, FromPackets: p.FromPackets, FromBytes: p.FromBytes, ToPackets: p.ToPackets, ToBytes: p.ToBytes,
			Lost: p.Down, OverLimit: p.OverLimit, Offloads: p.Offloads,
		})
	}
	return rows, nil
}

// longestText is how many bytes of a problem are told: whoever wrote the object chose what it quotes.
const longestText = 2 << 10

func (a *agent) problemRows(context.Context) (rows []localapi.Problem, _ error) {
	if !a.hasStarted() {
		return nil, nil
	}
	shared, own := a.currentProblems()
	for _, p := range append(shared, own...) {
		text := p.String()
		if len(text) > longestText {
			text = text[:longestText] + "..."
		}
		rows = append(rows, localapi.Problem{Severity: string(p.Severity), Text: text})
	}
	return rows, nil
}

// serveMetrics serves /metrics until ctx ends. A taken address costs nothing but it.
func (a *agent) serveMetrics(ctx context.Context) {
	if a.metricsAddr == "" {
		return
	}
	l, err := net.Listen("tcp", a.metricsAddr)
	if err == nil {
		err = a.metrics.Serve(ctx, l)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error("metrics are not served on this node; stop kube-proxy if it still runs here, or choose another address with --metrics-address", "err", err)
	}
}
