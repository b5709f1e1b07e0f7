package scale

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	podMTU = 1420
	// patience is how long an agent may take for anything it is asked for, lookEach how often the suite looks.
	patience = 60 * time.Second
	lookEach = time.Millisecond
)

// node is one node of a cluster: a network namespace, a directory of manifests, a keeper, and agents that come and go.
type node struct {
	o         Options
	dir       string
	manifests string
	ns        *tap.Namespace
	beyond    *tap.Namespace // the underlay leads here; nobody answers
	keep      *keeper.Keeper
	pods      []*pod
	talk      *talk // nil when there is none

	stopKeeper context.CancelFunc
	keeping    sync.WaitGroup

	cmd *exec.Cmd // the agent, nil while there is none
	log *os.File
}

// newNode makes a node without an agent. Its directory of manifests is empty.
func newNode(o Options) (n *node, err error) {
	n = &node{o: o, keep: keeper.New()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.dir, err = os.MkdirTemp("", "tapestry-scale-"); err != nil {
		return n, err
	}
	n.manifests = filepath.Join(n.dir, "manifests")
	for _, d := range []string{n.manifests, filepath.Join(n.dir, "state")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return n, err
		}
	}
	if n.log, err = os.Create(filepath.Join(n.dir, "agent.log")); err != nil {
		return n, err
	}
	if err := n.underlay(); err != nil {
		return n, err
	}
	ln, err := keeper.Listen(n.socket("keeper"))
	if err != nil {
		return n, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stopKeeper = stop
	n.keeping.Go(func() { _ = n.keep.Serve(ctx, ln, keeper.Options{}) }) // ends with stop
	return n, nil
}

// underlay gives the node its address, and a route to the addresses of other nodes on which every packet is lost.
func (n *node) underlay() (err error) {
	if n.ns, err = tap.NewNamespace(); err != nil {
		return err
	}
	if n.beyond, err = tap.NewNamespace(); err != nil {
		return err
	}
	here, there := tap.End{Namespace: n.ns, Name: "eth0"}, tap.End{Namespace: n.beyond, Name: "eth0"}
	via := netip.MustParseAddr("198.19.255.254")
	steps := []func() error{
		func() error { return tap.SetUp(n.ns, "lo") },
		func() error { return tap.NewVeth(here, there, 1500) },
		func() error { return tap.AddAddr(n.ns, "eth0", netip.PrefixFrom(netip.MustParseAddr(nodeAddress), 32)) },
		func() error { return tap.AddAddr(n.beyond, "eth0", netip.PrefixFrom(via, 32)) },
		func() error {
			return tap.AddRoute(n.beyond, "eth0", tap.Route{Dst: netip.PrefixFrom(netip.MustParseAddr(nodeAddress), 32)})
		},
		func() error {
			return tap.AddRoute(n.ns, "eth0", tap.Route{Dst: netip.MustParsePrefix("198.18.0.0/15"), Via: via, OnLink: true})
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("make the underlay: %w", err)
		}
	}
	return nil
}

func (n *node) socket(name string) string { return filepath.Join(n.dir, name+".sock") }

// start starts an agent. It does not wait until the agent is ready.
func (n *node) start(args ...string) error {
	n.cmd = n.o.Agent(append([]string{
		"--node", nodeName, "--manifests", n.manifests, "--state", filepath.Join(n.dir, "state"),
		"--keeper", n.socket("keeper"), "--attach-socket", n.socket("agent"), "--underlay-mtu", "1500",
		"--dns-upstream", "192.0.2.53", "--ingress-http", "", "--ingress-https", "",
	}, args...)...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.ns.Start(n.cmd); err != nil {
		n.cmd = nil
		return fmt.Errorf("start the agent: %w", err)
	}
	return nil
}

// ready waits until pods can be attached.
func (n *node) ready(ctx context.Context) error {
	client := cni.Client{Path: n.socket("agent")}
	return n.until(ctx, "the agent is ready", func() bool {
		st, err := client.Status(ctx)
		return err == nil && st.Ready
	})
}

// until polls done where no event can be waited for.
func (n *node) until(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited until %s: %w; the agent says:\n%s", what, ctx.Err(), n.said())
		case <-tick.C:
		}
	}
	return nil
}

// said returns the end of the agent's log.
func (n *node) said() string {
	const most = 2000
	data, _ := os.ReadFile(n.log.Name()) // without the log the error only says less
	return strings.TrimSpace(string(data[max(0, len(data)-most):]))
}

// kill ends the agent like a crash.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill() // the agent may have ended already
		_ = n.cmd.Wait()         // fails with the signal
		n.cmd = nil
	}
}

func (n *node) close() error {
	n.kill()
	if n.talk != nil {
		n.talk.close()
	}
	var errs []error
	if n.stopKeeper != nil {
		n.stopKeeper()
		n.keeping.Wait()
	}
	for _, p := range n.pods {
		errs = append(errs, p.close())
	}
	errs = append(errs, n.keep.Close())
	for _, ns := range []*tap.Namespace{n.ns, n.beyond} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	if n.dir != "" {
		errs = append(errs, os.RemoveAll(n.dir))
	}
	return errors.Join(errs...)
}

// pod is a pod's namespace with its TAP.
type pod struct {
	addr netip.Addr
	ns   *tap.Namespace
	tap  *os.File
}

// addPod makes a pod and attaches it. number is the last byte of its address.
func (n *node) addPod(ctx context.Context, number byte) (*pod, error) {
	base := netip.MustParsePrefix(podRange).Addr().As4()
	base[3] = number
	p := &pod{addr: netip.AddrFrom4(base)}
	var err error
	if p.ns, err = tap.NewNamespace(); err != nil {
		return nil, err
	}
	n.pods = append(n.pods, p)
	if err := tap.SetUp(p.ns, "lo"); err != nil {
		return nil, err
	}
	mac := packet.MAC{0x02, 0, 0, 0, 0, number}
	if p.tap, err = tap.Create(p.ns, tap.PodConfig([]netip.Addr{p.addr}, mac, podMTU)); err != nil {
		return nil, err
	}
	client := cni.Client{Path: n.socket("agent")}
	return p, client.Add(ctx, cni.Pod{
		Namespace: "default", Name: fmt.Sprintf("pod-%d", number), Addrs: []netip.Addr{p.addr}, MAC: net.HardwareAddr(mac[:]).String(), MTU: podMTU,
	}, p.tap)
}

func (p *pod) close() error {
	var errs []error
	if p.tap != nil {
		errs = append(errs, p.tap.Close())
	}
	return errors.Join(append(errs, p.ns.Close())...)
}
