// Package agent is "tapestry agent". It has the flags, the descriptors that outlive the process, and the sockets of
// the agent, and runs the loop that applies every snapshot of the cluster to a node (package follow).
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/cmd/tapestry/agent/expose"
	"tapestry.dev/tapestry/cmd/tapestry/agent/follow"
	"tapestry.dev/tapestry/cmd/tapestry/agent/heal"
	"tapestry.dev/tapestry/cmd/tapestry/agent/tell"
	"tapestry.dev/tapestry/cmd/tapestry/health"
	"tapestry.dev/tapestry/cmd/tapestry/heap"
	"tapestry.dev/tapestry/cmd/tapestry/supervise"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/share/descriptors"
)

// agentConfig holds the values of the agent's flags.
type agentConfig struct {
	node         string
	state        string // directory of the key
	keeper       string // the keeper's socket
	takeOver     string // a file to make when this agent may take over the node from another; "": none has it
	attach       string // the socket for attaching pods
	localAPI     string // the socket of the local API; "" for none
	localAPIUIDs []uint32
	dnsUpstreams []string
	names        namesConfig
	ingressHTTP  string // host address to listen on; "" for none
	ingressHTTPS string
	ingressConns int
	listenPort   int
	underlayMTU  int // 0: the MTU of the interface with the node's address
	clusterCIDRs []netip.Prefix
	flows        int
	flowLog      int // records; 0: none
	udpIdle      time.Duration
	healthAddr   string // host address of the health endpoints; "" for none
	metricsAddr  string // host address of /metrics; "" for none
	externalIPs  bool
	denyEgress   []netstack.Destination
	// routed are ranges outside that pods reach from their own addresses.
	routed      []netip.Prefix
	nodePorts   services.Places
	logLevel    string
	source      sourceConfig
	heal        healConfig
	addressRest time.Duration
	offloads    offloads
	hostProxy   *hostProxyConfig
	announce    announceConfig
}

// mostRecords is the largest --flow-log: 256 MiB.
const mostRecords = 1 << 20

// Command is "tapestry agent".
func Command() *cli.Command {
	c := agentConfig{hostProxy: new(hostProxyConfig)}
	var upstreams cli.StringSlice
	var uids cli.IntSlice
	return &cli.Command{
		Name:  "agent",
		Usage: "run the network of one node",
		Description: "Switches the frames of the node's pods, tunnels them to other nodes, translates Services, answers cluster DNS,\n" +
			"listens on NodePorts and serves Ingress. Needs a keeper, which holds the descriptors over the agent's restarts,\n" +
			"and no capability.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "node", Usage: "`NAME` of this node", Required: true, Destination: &c.node},
			&cli.StringFlag{Name: "state", Usage: "`DIR` of this node alone, for its WireGuard key and what it learned of the cluster", Required: true, Destination: &c.state},
			&cli.StringFlag{Name: "keeper", Usage: "`SOCKET` of the keeper", Required: true, Destination: &c.keeper},
			&cli.StringFlag{Name: "take-over", Usage: "wait for the agent that has this node to end, and make `FILE` when ready to take its place (default: end when the node has an agent)", Destination: &c.takeOver},
			&cli.StringFlag{Name: "attach-socket", Usage: "`SOCKET` to listen on for pods to attach", Required: true, Destination: &c.attach},
			&cli.StringFlag{Name: "local-api", Usage: "`SOCKET` on which tapestry status and doctor ask how the node is (default: none)", Destination: &c.localAPI},
			&cli.IntSliceFlag{Name: "local-api-uid", Usage: "`UID` of a user who may use --local-api besides root and this process's user; repeatable", Destination: &uids},
			&cli.StringSliceFlag{Name: "dns-upstream", Usage: "`ADDR` of a DNS server for names outside of the cluster (default: those of /etc/resolv.conf)", Destination: &upstreams},
			&cli.StringFlag{Name: "ingress-http", Usage: "`ADDR` to serve Ingress on over HTTP, empty for not", Value: ":80", Destination: &c.ingressHTTP},
			&cli.StringFlag{Name: "ingress-https", Usage: "`ADDR` to serve Ingress on over HTTPS, empty for not", Value: ":443", Destination: &c.ingressHTTPS},
			&cli.IntFlag{Name: "ingress-connections", Usage: "serve Ingress over at most `N` connections, and at most its part of the process's descriptors", Value: 8192, Destination: &c.ingressConns},
			&cli.IntFlag{Name: "wireguard-port", Usage: "UDP `PORT` of the tunnel", Value: translate.WireGuardPort, Destination: &c.listenPort},
			&cli.IntFlag{Name: "underlay-mtu", Usage: "MTU in `BYTES` of the network between the nodes", DefaultText: "the interface's", Destination: &c.underlayMTU},
			&cli.StringSliceFlag{Name: "cluster-cidr", Usage: "`RANGE` of all nodes' pods, in which nothing is dialled outside; repeatable (default: that of 'tapestry host-tap')"},
			&cli.IntFlag{Name: "flows", Usage: "`N` flows to track at most", Value: 1 << 18, Destination: &c.flows},
			&cli.IntFlag{Name: "flow-log", Usage: "keep the last `N` events of flows in memory, for 'tapestry flows', 256 bytes each; 0 for none", Value: flowlog.DefaultRecords, Destination: &c.flowLog},
			&cli.DurationFlag{Name: "udp-idle", Usage: "keep a UDP conversation through host sockets (NodePort, egress) for `TIME` without a datagram", Value: 2 * time.Minute, Destination: &c.udpIdle},
			&cli.DurationFlag{Name: "address-rest", Usage: "give a pod's address to another pod only after `TIME`", Value: time.Minute, Destination: &c.addressRest},
			&cli.StringFlag{Name: "health-address", Usage: "`ADDR` to serve /healthz, /livez and /readyz on, empty for not", Value: ":10256", Destination: &c.healthAddr},
			&cli.StringFlag{Name: "metrics-address", Usage: "`ADDR` to serve /metrics on, empty for not", Value: "127.0.0.1:10249", Destination: &c.metricsAddr},
			&cli.BoolFlag{Name: "external-ips", Usage: "honour spec.externalIPs of Services; everybody who may write a Service can take over any address then", Destination: &c.externalIPs},
			&cli.StringSliceFlag{Name: "deny-egress", Usage: "`RANGE` or RANGE:PORT outside that pods may not dial, or " + metadataServers + " for where clouds hand out credentials; repeatable, empty for nothing", Value: cli.NewStringSlice(metadataServers)},
			&cli.StringSliceFlag{Name: "non-masquerade-cidr", Usage: "`RANGE` outside that pods reach from their own addresses, by the host TAP: the network there has to know the way back; repeatable"},
			&cli.StringSliceFlag{Name: "nodeport-addresses", Usage: "serve NodePorts only at the host's addresses in `RANGE`, repeatable, or primary for the node's first of each family (default: at all)"},
			&cli.StringFlag{Name: "log-level", Usage: "log what is at least `LEVEL`: debug, info, warn or error", Value: "info", Destination: &c.logLevel},
		}, slices.Concat(c.names.flags(), c.source.flags(), c.heal.flags(), c.announce.flags(), c.offloads.flags(), c.hostProxy.flags())...),
		Action: func(ctx *cli.Context) error {
			c.dnsUpstreams = upstreams.Value()
			var err error
			if c.denyEgress, err = destinations(ctx.StringSlice("deny-egress")); err != nil {
				return err
			}
			if c.routed, err = ranges("non-masquerade-cidr", ctx.StringSlice("non-masquerade-cidr")); err != nil {
				return err
			}
			if c.nodePorts, err = services.ParsePlaces(ctx.StringSlice("nodeport-addresses")); err != nil {
				return fmt.Errorf("--nodeport-addresses: %w", err)
			}
			if c.clusterCIDRs, err = ranges("cluster-cidr", ctx.StringSlice("cluster-cidr")); err != nil {
				return err
			}
			if err := c.announce.parse(); err != nil {
				return err
			}
			if c.localAPIUIDs, err = users("local-api-uid", uids.Value()); err != nil {
				return err
			}
			if err := c.hostProxy.parse(); err != nil {
				return err
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
				return fmt.Errorf("--log-level %q is not a level: expected debug, info, warn or error", c.logLevel)
			}
			if c.ingressConns < 1 {
				return fmt.Errorf("--ingress-connections %d is too few: expected at least 1", c.ingressConns)
			}
			if c.flowLog < 0 || c.flowLog > mostRecords {
				return fmt.Errorf("--flow-log %d is not a number of events: expected 0 to %d", c.flowLog, mostRecords)
			}
			if err := c.listensApart(); err != nil {
				return err
			}
			log := newLog(os.Stderr, level, c.node)
			slog.SetDefault(log) // messages of libraries that use package log go here, too
			return runAgent(ctx.Context, c, log)
		},
	}
}

// newLog returns the log of a node's agent. The handler quotes all unprintable text.
func newLog(w io.Writer, level slog.Level, node string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})).With("node", node)
}

// agent runs a node.
type agent struct {
	agentConfig
	log      *slog.Logger
	plan     descriptors.Plan
	source   *ahead
	kept     *keeper.Holdings
	sockets  *keeper.Sockets
	shelves  []*keeper.Shelf // empty: the keeper has none
	held     node.Held
	pods     *pods.Registry
	progress *health.Progress
	follower *follow.Follower
	healer   *heal.Healer
	exposure *expose.Watcher
	outside  *announcing.Announcing
	teller   *tell.Teller
}

func runAgent(ctx context.Context, c agentConfig, log *slog.Logger) error {
	heap.Begin()
	a := &agent{agentConfig: c, log: log, plan: descriptors.Ours(), progress: health.NewProgress()}
	leased := make(chan struct{})
	source, err := c.open(log, leased)
	if err != nil {
		return err
	}
	if a.held, err = a.fixed(); err != nil {
		return err
	}
	asked := ctx // to end
	ctx, stop := context.WithCancel(context.WithoutCancel(asked))
	defer stop()
	atOnce := context.AfterFunc(asked, stop)
	a.source = lookAhead(ctx, source)
	if a.kept, err = a.hold(ctx); err != nil {
		return err
	}
	defer a.kept.Close()
	close(leased)
	items, err := a.kept.List()
	if err != nil {
		return err
	}
	a.sockets, items = keeper.NewSockets(a.kept, items, log)
	a.held.Listen = a.sockets
	items = a.findHost(items)
	if err := a.adopt(ctx, items); err != nil {
		return err
	}
	defer a.leaveShelves()
	if err := a.openPods(); err != nil {
		return err
	}
	defer a.pods.Close()
	// Loops that wait for frames keep their processors for a while. One more processor makes sure that the tunnel, the
	// stack and DNS never wait for these loops.
	loops := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(loops + 1)
	if a.held.Poller, err = poll.New(loops); err != nil {
		return err
	}
	defer a.held.Poller.Close()
	a.follower = follow.New(follow.Options{
		Node: c.node, Source: a.source, Held: a.held, Kept: items, Pods: a.pods, UnderlayMTU: c.underlayMTU, ExternalIPs: c.externalIPs,
		ClusterCIDRs: c.clusterCIDRs, Features: c.offloads.features(), Progress: a.progress, Log: log,
		Ailing: func() ([]kube.Problem, string) {
			return slices.Concat(a.healer.Problems(), a.exposure.Problems(), a.outside.Problems()), a.healer.Unfit()
		},
	})
	if a.healer, err = a.newHealer(); err != nil {
		return err
	}
	a.outside = a.newAnnouncing()
	a.exposure = expose.New(expose.Options{Node: c.node, Follower: a.follower, Keeper: a.kept, Routed: c.routed, Log: log})
	a.teller = tell.New(tell.Options{
		Node: c.node, PublicKey: a.held.Key.Public().String(), Follower: a.follower, Pods: a.pods, Keeper: a.kept, Healer: a.healer, Exposure: a.exposure.Tier, HostProxy: a.hostProxy.listensAt, Progress: a.progress,
		Descriptors: a.plan, Awaited: a.awaited, Directory: c.source.manifests, State: a.source.State, Announcing: a.outside, Flows: a.recall(),
	})
	if atOnce() {
		// From now on, what ends with the agent may finish while everything else goes on.
		defer context.AfterFunc(asked, func() { a.follower.Drain(); stop() })()
	}
	err = a.run(ctx)
	a.follower.Close()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// run runs everything until ctx is done or an essential part ends.
func (a *agent) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { a.serveHTTP(ctx, a.healthAddr, a.teller.Health.Serve, adviceHealth); return nil })
	group.Go(func() error { a.serveHTTP(ctx, a.metricsAddr, a.teller.Metrics.Serve, adviceMetrics); return nil })
	group.Go(func() error { a.serveLocalAPI(ctx); return nil })
	group.Go(func() error { a.serveAnnouncers(ctx); return nil })
	applied := make(chan struct{}, 1)
	group.Go(func() error { return a.follower.Run(ctx, applied) })
	group.Go(func() error { heap.GiveBack(ctx, applied); return nil })
	group.Go(func() error { a.kept.Run(ctx); return nil })
	group.Go(func() error { a.keepRelays(ctx); return nil })
	group.Go(func() error { a.healer.Run(ctx); return nil })
	group.Go(func() error { a.exposure.Run(ctx); return nil })
	group.Go(func() error { return a.serve(ctx) })
	return group.Wait()
}

// awaitCertificates waits until the cluster's Secrets are known, or no API server answers. Saved objects have none of
// them, and a client that waits is better off than one that is shown a certificate it refuses.
func (a *agent) awaitCertificates(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s := a.source.State(); !s.Saved.IsZero() && s.Answers; s = a.source.State() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// serve waits for the first snapshot, and then runs the parts that need it.
func (a *agent) serve(ctx context.Context) error {
	select {
	case <-a.follower.Started():
	case <-ctx.Done():
		return ctx.Err()
	}
	a.sockets.Settle()
	n := a.follower.Node()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.serveAttach(ctx) })
	group.Go(func() error { a.pods.Run(ctx); return ctx.Err() })
	group.Go(func() error { n.Run(ctx); return ctx.Err() })
	group.Go(func() error { a.serveHostProxy(ctx, n.ServeProxy); return nil })
	group.Go(func() error { a.outside.Watch(ctx, a.follower.Republish); return ctx.Err() })
	group.Go(func() error { a.outside.Lead(ctx, n.SetGateways); return ctx.Err() })
	group.Go(func() error { return a.follower.Announce(ctx) })
	for _, in := range []struct {
		addr  string
		serve func(context.Context, net.Listener) error
	}{{a.ingressHTTP, n.ServeHTTP}, {a.ingressHTTPS, n.ServeHTTPS}} {
		if in.addr == "" {
			continue
		}
		group.Go(func() error {
			l, err := a.healer.Doors.Open(ctx, in.addr)
			if err != nil {
				return err
			}
			if in.addr == a.ingressHTTPS {
				a.awaitCertificates(ctx)
			}
			return in.serve(ctx, l)
		})
	}
	supervise.Serving()
	a.log.Info("the node is ready", "wireguard", a.held.Key.Public(), "mtu", n.Config().Netstack.MTU)
	return group.Wait()
}
