// Package nodeinit prepares a node before its agent runs. Its steps have the necessary rights and end soon. They make
// directories that the agent may write, the host TAP, and listening sockets on privileged ports.
package nodeinit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
)

// config holds the values of the flags of host-tap.
type config struct {
	node         string
	apiServers   []string
	podCIDRs     []netip.Prefix
	clusterCIDRs []netip.Prefix
	serviceCIDRs []netip.Prefix
	// balancers are ranges of load balancers' addresses.
	balancers   []netip.Prefix
	underlayMTU int // 0: the MTU of the interface with the node's address
	keeper      string
	owner       int // uid of the agent
	listen      []string
	directories []string
	state       string // the agent's directory, made like directories
	group       int    // of the directories
	pingFile    string
}

// rangeFlags are flags whose values are prefixes.
var rangeFlags = []string{"pod-cidr", "cluster-cidr", "service-cidr", "load-balancer-cidr"}

// HostTAP is "tapestry host-tap".
func HostTAP() *cli.Command {
	var c config
	return &cli.Command{
		Name:  "host-tap",
		Usage: "give this node its host TAP, before the agent starts",
		Description: "Makes the TAP " + hosttap.Name + " with the second address of each of the node's pod ranges, routes the ranges of pods,\n" +
			"Services and load balancers through it, and leaves its descriptor with the keeper, for the agent. It changes what exists already to\n" +
			"what the flags say, and ends. It needs CAP_NET_ADMIN, and for --listen on ports below 1024 also CAP_NET_BIND_SERVICE.\n\n" +
			"With --remove it removes the TAP, what the keeper holds of it, and each --directory with its content.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "keeper", Usage: "`SOCKET` of the keeper; the step waits for it", Required: true, Destination: &c.keeper},
			&cli.StringFlag{Name: "node", Usage: "`NAME` of this node, whose ranges the API server is asked for", Destination: &c.node},
			&cli.StringSliceFlag{Name: "api-server", Usage: "`URL` of an API server; repeatable"},
			&cli.StringSliceFlag{Name: "pod-cidr", Usage: "`PREFIX` of this node's pods, one per family, instead of asking the API server"},
			&cli.StringSliceFlag{Name: "cluster-cidr", Usage: "`PREFIX` of all nodes' pods; repeatable"},
			&cli.StringSliceFlag{Name: "service-cidr", Usage: "`PREFIX` of the cluster's Services; repeatable"},
			&cli.StringSliceFlag{Name: "load-balancer-cidr", Usage: "`PREFIX` of load balancers' addresses, which this node then serves to clients outside whose packets the network brings here, and of egress addresses; needs a kernel that forwards; repeatable"},
			&cli.IntFlag{Name: "underlay-mtu", Usage: "MTU in `BYTES` of the network between the nodes", DefaultText: "the interface's", Destination: &c.underlayMTU},
			&cli.IntFlag{Name: "uid", Usage: "`UID` of the agent", DefaultText: "this process's", Value: os.Geteuid(), Destination: &c.owner},
			&cli.StringSliceFlag{Name: "listen", Usage: "listen on this TCP `ADDR`, such as :80, for the agent; repeatable"},
			&cli.StringSliceFlag{Name: "directory", Usage: "make `DIR`, which the group may write; repeatable"},
			&cli.StringFlag{Name: "state", Usage: "`DIR` of the agent, made like each --directory; the agent lists there the API servers that it knows", Destination: &c.state},
			groupFlag(&c.group),
			&cli.StringFlag{Name: "ping-group-range", Usage: "`FILE` of the setting that allows the agent to send pings for pods", Value: pingGroupRange, Destination: &c.pingFile},
			&cli.BoolFlag{Name: "remove", Usage: "remove everything again"},
		},
		Action: func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return cli.Exit("host-tap takes no arguments: see 'tapestry host-tap --help'", 2)
			}
			c.apiServers, c.listen, c.directories = ctx.StringSlice("api-server"), ctx.StringSlice("listen"), ctx.StringSlice("directory")
			for i, into := range []*[]netip.Prefix{&c.podCIDRs, &c.clusterCIDRs, &c.serviceCIDRs, &c.balancers} {
				var err error
				if *into, err = prefixes(rangeFlags[i], ctx.StringSlice(rangeFlags[i])); err != nil {
					return err
				}
			}
			s := &step{config: c, log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", c.node), retry: 250 * time.Millisecond, patience: patience}
			if ctx.Bool("remove") {
				return s.remove(ctx.Context)
			}
			if err := c.check(); err != nil {
				return err
			}
			if err := belong(c.owner, s.all()...); err != nil { // before anything is read or changed
				return err
			}
			if len(c.podCIDRs) == 0 {
				o := cluster.Options{Node: c.node, Servers: c.apiServers, State: c.state}
				var err error
				if s.nodes, err = cluster.NodeReader(o); err != nil {
					return err
				}
			}
			return s.run(ctx.Context)
		},
	}
}

func prefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--%s %q is not a prefix: expected one like 10.244.0.0/16", flag, text)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// check returns an error if the flags do not fit together.
func (c *config) check() error {
	switch {
	case len(c.podCIDRs) == 0 && (c.node == "" || len(c.apiServers) == 0):
		return errors.New("the pod ranges of this node are not known: give --node and --api-server, or --pod-cidr")
	case len(c.clusterCIDRs) == 0:
		return errors.New("--cluster-cidr is missing: give the range that all nodes' pod ranges are in")
	case len(c.serviceCIDRs) == 0:
		return errors.New("--service-cidr is missing: give the API server's --service-cluster-ip-range")
	}
	for _, r := range c.balancers {
		for _, other := range slices.Concat(c.clusterCIDRs, c.serviceCIDRs) {
			if r.Overlaps(other) {
				return fmt.Errorf("--load-balancer-cidr %s overlaps %s, the range of pods or Services, which clients outside must not reach: give another range", r, other)
			}
		}
	}
	for _, addr := range c.listen {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("--listen %q is not an address to listen on: expected one like :80", addr)
		}
	}
	return nil
}

// step is one run of host-tap.
type step struct {
	config
	log   *slog.Logger
	nodes func(context.Context) (kube.Objects, error) // returns a snapshot with this node alone
	retry time.Duration                               // pause between two attempts
	// patience is how long a step waits for an API server that does not answer, when it remembers what one said.
	patience time.Duration
}

// patience is that of an agent's start.
const patience = 3 * time.Second

// all returns the paths of all directories.
func (s *step) all() []string {
	if s.state == "" {
		return s.directories
	}
	return append([]string{s.state}, s.directories...)
}

func (s *step) run(ctx context.Context) error {
	for _, dir := range s.all() {
		if err := makeDirectory(dir, s.group); err != nil {
			return err
		}
	}
	if err := allowPings(s.pingFile, s.group); err != nil {
		s.log.Warn("pods get no answer to pings to the outside unless the agent's group may send them; set net.ipv4.ping_group_range on the node", "err", err)
	}
	kept, err := s.waitForKeeper(ctx)
	if err != nil {
		return err
	}
	defer kept.Close()
	host, err := s.waitForRanges(ctx)
	if err != nil {
		return err
	}
	if err := hosttap.Ensure(nil, kept, host); err != nil {
		return fmt.Errorf("make the host TAP: %w", err)
	}
	s.log.Info("the host TAP is there", "interface", hosttap.Name, "addrs", hosttap.Addrs(host.PodCIDRs), "mtu", host.MTU, "routes", slices.Concat(host.Pods, host.Services, host.LoadBalancers))
	return s.listeners(kept)
}

// waitForKeeper connects to the keeper. The keeper is in another pod and may start later.
func (s *step) waitForKeeper(ctx context.Context) (*keeper.Client, error) {
	var kept *keeper.Client
	err := s.until(ctx, func() (string, error) {
		c, err := keeper.Dial(ctx, s.keeper)
		if err != nil {
			return fmt.Sprintf("waiting for the keeper: %v", err), nil
		}
		kept = c
		return "", nil
	})
	return kept, err
}

// waitForRanges waits until the node has its pod ranges, and returns the configuration of the host TAP. When no API
// server answers, what one said last is good enough: the agent begins with what it saved, too.
func (s *step) waitForRanges(ctx context.Context) (hosttap.Config, error) {
	host := hosttap.Config{PodCIDRs: s.podCIDRs, Pods: s.clusterCIDRs, Services: s.serviceCIDRs, LoadBalancers: s.balancers, Owner: s.owner}
	if len(s.podCIDRs) > 0 {
		host.MTU = translate.PodMTU(s.underlayMTU, nil, s.podCIDRs)
		return host, s.inside(s.podCIDRs)
	}
	last, known := s.recall()
	silent := ctx // ends when a server has been silent for long enough
	if known {
		var cancel context.CancelFunc
		silent, cancel = context.WithTimeout(ctx, s.patience)
		defer cancel()
	}
	answers := false
	err := s.until(ctx, func() (string, error) {
		asking := silent
		if answers {
			asking = ctx
		}
		objs, err := s.nodes(asking)
		if err != nil && known && !answers && silent.Err() != nil && ctx.Err() == nil {
			s.log.Warn("no API server answers: the host TAP is made as it was", "ranges", last.PodCIDRs, "mtu", last.MTU, "err", err)
			host.PodCIDRs, host.MTU = last.PodCIDRs, last.MTU
			return "", nil
		}
		if err != nil {
			return fmt.Sprintf("waiting for the API server: %v", err), nil
		}
		answers = true
		return s.rangesOf(objs, &host)
	})
	if err == nil && answers {
		if err := s.remember(host); err != nil {
			s.log.Warn("the node's ranges are not kept: a start while no API server answers has to wait for one", "err", err)
		}
	}
	return host, err
}

// rangesOf puts the node's ranges and MTU into host, or returns what it waits for.
func (s *step) rangesOf(objs kube.Objects, host *hosttap.Config) (wait string, err error) {
	o := translate.Options{Node: s.node, UnderlayMTU: s.underlayMTU}
	r := translate.Translate(objs, o).Netstack
	if len(r.PodCIDRs) == 0 {
		return fmt.Sprintf("waiting for Node %s to get a range for its pods: spec.podCIDRs is empty; the controller manager gives it one if it runs with --allocate-node-cidrs and --cluster-cidr", s.node), nil
	}
	if o.UnderlayMTU == 0 {
		if o.UnderlayMTU, err = tap.MTUOf(nil, r.NodeAddrs); err != nil {
			return "", err
		}
		r = translate.Translate(objs, o).Netstack
	}
	host.PodCIDRs, host.MTU = r.PodCIDRs, r.MTU
	return "", s.inside(r.PodCIDRs)
}

// inside checks that the routes of the host TAP cover the node's own pod ranges.
func (s *step) inside(podCIDRs []netip.Prefix) error {
	for _, p := range podCIDRs {
		if !slices.ContainsFunc(s.clusterCIDRs, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) }) {
			return fmt.Errorf("the node's pod range %s is outside of --cluster-cidr %v, so that its processes would not reach its pods: give the range that all nodes' pod ranges are in", p, s.clusterCIDRs)
		}
	}
	return nil
}

// until calls f until it succeeds, fails, or ctx ends. It logs what f waits for when that changes, and every half
// minute.
func (s *step) until(ctx context.Context, f func() (wait string, err error)) error {
	tick := time.NewTicker(s.retry)
	defer tick.Stop()
	said, at := "", time.Time{}
	for {
		wait, err := f()
		if wait == "" || err != nil {
			return err
		}
		if wait != said || time.Since(at) > 30*time.Second {
			s.log.Info(wait)
			said, at = wait, time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", wait, ctx.Err())
		}
	}
}

// listeners makes the keeper hold a listening socket for each of the addresses, and for no others.
func (s *step) listeners(kept *keeper.Client) error {
	items, err := kept.List()
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, it := range items {
		_ = it.File.Close()
		have[it.Key] = true
	}
	for key := range have {
		if addr, ok := cutListen(key); ok && !slices.Contains(s.listen, addr) {
			if err := kept.Delete(key); err != nil {
				return err
			}
		}
	}
	for _, addr := range s.listen {
		if have[keeper.ListenPrefix+addr] {
			continue
		}
		if err := leaveListener(kept, addr); err != nil {
			// The step goes on, as the agent does when it cannot listen: the node's network is more important than
			// Ingress.
			s.log.Error("Ingress will not be served here; free the address or choose another", "err", err)
			continue
		}
		s.log.Info("listening for the agent", "addr", addr)
	}
	return nil
}

// remove removes all that this command makes.
func (s *step) remove(ctx context.Context) error {
	dialing, cancel := context.WithTimeout(ctx, time.Second)
	kept, err := keeper.Dial(dialing, s.keeper)
	cancel()
	if err == nil { // without a keeper nothing is held
		defer kept.Close()
		s.listen = nil
		if err := errors.Join(kept.Delete(hosttap.Key), s.listeners(kept)); err != nil {
			return err
		}
	}
	if err := hosttap.Remove(nil); err != nil {
		return fmt.Errorf("remove the host TAP: %w", err)
	}
	for _, dir := range s.all() {
		if filepath.Clean(dir) == "/" || !filepath.IsAbs(dir) {
			return fmt.Errorf("--directory %q: expected an absolute path below /", dir)
		}
		if err := os.RemoveAll(dir); err != nil && !s.mayStay(dir, err) {
			return fmt.Errorf("remove the directory: %w", err)
		}
	}
	s.log.Info("the host TAP is gone", "interface", hosttap.Name, "directories", s.all())
	return nil
}

// mayStay reports whether a directory may stay because it is empty and only its place prevents its removal: something
// is mounted there, or its parent belongs to somebody else, such as the machine's /var/lib on a rootless node.
func (s *step) mayStay(dir string, err error) bool {
	left, unread := os.ReadDir(dir)
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, fs.ErrPermission) || unread != nil || len(left) > 0 {
		return false
	}
	s.log.Info("a directory stays, empty", "path", dir, "err", err)
	return true
}
