// Package tell reports the state of an agent's node: whether it is ready, its counters, and the tables of the local
// API.
package tell

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/cmd/tapestry/agent/follow"
	"tapestry.dev/tapestry/cmd/tapestry/agent/recall"
	"tapestry.dev/tapestry/cmd/tapestry/health"
	"tapestry.dev/tapestry/cmd/tapestry/metrics"
	"tapestry.dev/tapestry/cmd/tapestry/supervise"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/share/descriptors"
	"tapestry.dev/tapestry/version"
)

// begun is approximately when this process began.
var begun = time.Now()

// Options are the sources of a Teller. All are required.
type Options struct {
	// Node is the node's name. PublicKey is the public key of its tunnel.
	Node, PublicKey string
	Follower        *follow.Follower
	Pods            *pods.Registry
	Keeper          Keeper
	Healer          Healer
	// Exposure says how clients outside reach load balancers by this node, beside which these announcers work.
	Exposure func(working []announcing.Kind) localapi.LoadBalancers
	// HostProxy returns where the host proxy listens; "" for nowhere.
	HostProxy func() string
	Progress  *health.Progress
	// Descriptors is the plan by which the agent's parts use descriptors.
	Descriptors descriptors.Plan
	// Awaited reports whether another agent waits to take over the node.
	Awaited func() bool
	// Directory is the directory of the manifests; "" means that the source is an API server.
	Directory string
	// State returns the state of the source of the cluster's objects.
	State func() kube.SourceState
	// Announcing knows what is announced to the network outside.
	Announcing *announcing.Announcing
	// Flows reads the flow log; nil if the agent has none.
	Flows *recall.Source
}

// Keeper is used to check that the keeper answers; *keeper.Holdings is one.
type Keeper interface {
	Get(key string) (keeper.Item, error)
}

// Healer knows what ails the node; *heal.Healer is one.
type Healer interface {
	CheckHost(context.Context) error
	CheckPods(context.Context) error
	Counters() counter.List
}

// Teller reports the state of a node. Its methods may be called concurrently.
type Teller struct {
	o       Options
	Health  *health.Health
	Metrics *metrics.Metrics
}

// New returns a Teller.
func New(o Options) *Teller {
	t := &Teller{o: o}
	t.Metrics = metrics.New(t.counters)
	t.Health = health.New(health.Options{
		Alive: o.Progress.Alive, Eligible: o.Progress.Eligible, Updated: o.Progress.Updated,
		Ready: []health.Check{
			{Name: "cluster", Run: t.checkStarted, Note: t.oldText},
			{Name: "keeper", Run: t.checkKeeper},
			{Name: "host", Run: t.lasting(o.Healer.CheckHost)},
			// Checks run in order, so there is a node when this one runs.
			{Name: "packets", Run: func(ctx context.Context) error { return o.Follower.Node().Probe(ctx) }},
			{Name: "pods", Run: t.lasting(o.Healer.CheckPods)},
		},
	})
	return t
}

// counters returns all counters of this agent.
func (t *Teller) counters() counter.List {
	build := counter.Counter{Name: "tapestry_build_info", Help: "Always 1; the labels say which agent this is.", Kind: counter.Gauge, Labels: []string{"version", "goversion"}}
	build.Values = []counter.Value{{Labels: []string{version.String(), runtime.Version()}, N: 1}}
	list := append(t.o.Progress.Counters(), build)
	if life, ok := supervise.Supervised(); ok {
		list = append(list, counter.One(counter.Total, "tapestry_agent_restarts_total", "How often the agent was started again in its container, because it had ended.", life.Restarts))
	}
	if !t.o.Follower.HasStarted() {
		return list
	}
	return slices.Concat(list,
		t.o.Follower.Node().Counters(),
		t.o.Pods.Counters(),
		t.o.Healer.Counters(),
		t.o.Announcing.Counters(),
		t.countState(),
	)
}

// countState returns the counters of what the agent itself knows.
func (t *Teller) countState() counter.List {
	problems := map[string]int{string(kube.Error): 0, string(kube.Warning): 0}
	for _, p := range t.problems() {
		problems[string(p.Severity)]++
	}
	return counter.List{
		counter.By(counter.Gauge, "tapestry_problems", "Problems with objects that this node sees, by severity.", "severity", problems),
		counter.One(counter.Gauge, "tapestry_state_age_seconds", "Time since a snapshot of the cluster was applied last.", time.Since(t.o.Progress.Updated()).Seconds()),
		counter.One(counter.Gauge, "tapestry_source_age_seconds", "How old the state in force may be because its source does not answer; 0 while it answers.",
			t.o.State().Age.Seconds()),
	}
}

// Server returns the server of the local API.
func (t *Teller) Server(o localapi.Options) *localapi.Server {
	return &localapi.Server{Node: t.describe, Options: o, Flows: t.flows(), Tables: append(t.o.Announcing.Shown(),
		localapi.Peers.From(t.peerRows),
		localapi.Pods.From(t.podRows),
		localapi.Frontends.From(t.frontendRows),
		localapi.Problems.From(t.problemRows),
		localapi.Policies.From(t.policyRows),
		localapi.StagedFlows.From(t.stagedRows),
		localapi.Explanations.Answers(t.explain),
		localapi.DescriptorShares.From(t.descriptorRows),
		localapi.Counters.From(func(context.Context) ([]counter.Counter, error) { return t.Metrics.Counters() }),
	)}
}

// flows returns localapi.Server.Flows.
func (t *Teller) flows() func(localapi.FlowQuery) localapi.FlowReader {
	if t.o.Flows == nil {
		return nil
	}
	return func(q localapi.FlowQuery) localapi.FlowReader { return t.o.Flows.Read(q) }
}

// describe returns the description of the node.
func (t *Teller) describe(ctx context.Context) localapi.Node {
	n := localapi.Node{
		Name: t.o.Node, Version: version.String(), Started: begun, PublicKey: t.o.PublicKey,
		Missing: t.Health.Missing(ctx), Source: t.sourceText(), Updated: t.o.Progress.Updated(), Descriptors: descriptorsInUse(t.o.Descriptors),
	}
	if life, ok := supervise.Supervised(); ok {
		n.Restarts, n.LastEnd, n.LastEnded = life.Restarts, life.Why, life.At
	}
	if server := t.o.State().Server; server != "" {
		n.APIServer = "https://" + server
	}
	if t.o.Follower.HasStarted() {
		n.LoadBalancers, n.HostProxy = t.o.Exposure(t.o.Announcing.Working()), t.o.HostProxy()
		c := &t.o.Follower.Node().Config().Netstack
		n.HostTAP, n.Addresses, n.PodCIDRs, n.MTU, n.DNS = t.o.Follower.Node().HasHostTAP(netip.Addr{}), c.NodeAddrs, c.PodCIDRs, c.MTU, c.LocalAddrs
	}
	return n
}

// sourceText says where the cluster's objects come from, and since when the source has failed, if it fails.
func (t *Teller) sourceText() string {
	if dir := t.o.Directory; dir != "" {
		return "manifests in " + dir
	}
	s := t.o.State()
	text := "API server " + s.Server
	if s.Age > 0 {
		text += fmt.Sprintf(", not heard of for %s", s.Age.Round(time.Second))
	}
	if !s.Saved.IsZero() {
		text += ", as saved on this node"
	}
	if s.Err != nil {
		text += fmt.Sprintf(" (%v)", s.Err)
	}
	return text
}

func (t *Teller) peerRows(context.Context) (rows []localapi.Peer, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	for _, p := range t.o.Follower.Node().Peers() {
		row := localapi.Peer{
			Name: p.Name, Endpoint: p.Endpoint, Silent: p.Silent, HandshakeAge: p.HandshakeAge, AnswerAge: p.AnswerAge,
			Received: p.ReceivedBytes, Sent: p.SentBytes, MTU: p.MTU,
		}
		if !p.PublicKey.IsZero() {
			row.PublicKey = p.PublicKey.String()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (t *Teller) podRows(context.Context) (rows []localapi.Pod, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	for _, p := range t.o.Follower.Node().Attachments() {
		rows = append(rows, localapi.Pod{
			Name: p.Name, Addrs: p.Addrs, FromPackets: p.FromPackets, FromBytes: p.FromBytes, ToPackets: p.ToPackets, ToBytes: p.ToBytes,
			Lost: p.Down, OverLimit: p.OverLimit, PacketsPerSecond: p.Quota.Packets, FlowsPerSecond: p.Quota.Flows,
			OverPackets: p.OverPackets, OverFlows: p.OverFlows, Offloads: p.Offloads,
		})
	}
	return rows, nil
}

func (t *Teller) frontendRows(context.Context) (rows []localapi.Frontend, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	for _, r := range t.o.Follower.Node().Table().Rows() {
		rows = append(rows, localapi.Frontend(r))
	}
	return rows, nil
}

// longestText is how many bytes of a problem's text are reported at most. The author of the object chooses the quoted
// text.
const longestText = 2 << 10

func (t *Teller) problemRows(context.Context) (rows []localapi.Problem, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	for _, p := range t.problems() {
		text := p.String()
		if len(text) > longestText {
			text = strings.ToValidUTF8(text[:longestText], "") + "..."
		}
		rows = append(rows, localapi.Problem{Severity: string(p.Severity), Text: text})
	}
	return rows, nil
}
