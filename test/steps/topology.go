package steps

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab"
)

//go:embed bench.yaml
var benchYAML string

// Subjects of the benchmark: our paths, as topologies.
const (
	SameNode       = "same-node"
	ClusterIP      = "cluster-ip"
	AcrossNodes    = "across-nodes"
	AcrossServices = "cluster-ip-across"
)

// Bench is a lab whose paths can be measured beside baselines. The process must be in the user namespace that owns the
// lab's, see userns.
type Bench struct {
	*lab.Client
	dir      string
	subjects []bench.Topology
	stop     context.CancelFunc
}

// subject is a path between two pods of the lab.
type subject struct {
	name           string
	client, server *tap.Namespace
	addr           netip.Addr
}

func (s *subject) Name() string           { return s.name }
func (s *subject) Client() *tap.Namespace { return s.client }
func (s *subject) Server() *tap.Namespace { return s.server }
func (s *subject) Close() error           { return errors.Join(s.client.Close(), s.server.Close()) }

func (s *subject) Target(service bench.Service) (netip.AddrPort, bool) {
	return netip.AddrPortFrom(s.addr, bench.LoadPort), service == bench.Load
}

// UpBench brings up the lab that is measured.
func UpBench(ctx context.Context) (b *Bench, err error) {
	b = &Bench{}
	if b.dir, err = os.MkdirTemp("", "tapestry-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Down(context.WithoutCancel(ctx)))
		}
	}()
	file := filepath.Join(b.dir, "bench.yaml")
	if err := os.WriteFile(file, []byte(benchYAML), 0o600); err != nil {
		return b, err
	}
	if b.Client, err = lab.Up(ctx, lab.Options{Name: fmt.Sprintf("bench-%d", os.Getpid()), Files: []string{file}}); err != nil {
		return b, err
	}
	if err := b.Wait(ctx, 20*time.Second); err != nil {
		return b, err
	}
	return b, b.open(ctx)
}

// Subjects are our paths, in the order in which they are shown.
func (b *Bench) Subjects() []bench.Topology { return b.subjects }

// Down takes the lab down.
func (b *Bench) Down(ctx context.Context) error {
	var errs []error
	for _, s := range b.subjects {
		errs = append(errs, s.Close())
	}
	if b.stop != nil {
		b.stop()
	}
	if b.Client != nil {
		errs = append(errs, b.Client.Down(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

func (b *Bench) open(ctx context.Context) error {
	st, err := b.Status(ctx)
	if err != nil {
		return err
	}
	addrs := map[string]netip.Addr{}
	for _, p := range st.Pods {
		addrs[p.Name] = p.Addrs[0]
	}
	for _, s := range st.Services {
		if s.Namespace == "default" {
			if addrs["svc/"+s.Name], err = netip.ParseAddr(s.ClusterIPs[0]); err != nil {
				return err
			}
		}
	}
	keep := keeper.New()
	path := filepath.Join(b.dir, "namespaces.sock")
	ln, err := keeper.Listen(path)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = keep.Serve(serving, ln, keeper.Options{}) // ends with stop
	}()
	b.stop = func() { stop(); <-done; _ = keep.Close() }
	for _, s := range []struct{ name, server, addr string }{
		{SameNode, "near", "near"},
		{ClusterIP, "near-behind", "svc/near"},
		{AcrossNodes, "far", "far"},
		{AcrossServices, "far-behind", "svc/far"},
	} {
		sub := &subject{name: s.name, addr: addrs[s.addr]}
		if sub.client, err = b.namespace(ctx, keep, path, "client"); err != nil {
			return err
		}
		if sub.server, err = b.namespace(ctx, keep, path, s.server); err != nil {
			return errors.Join(err, sub.client.Close())
		}
		b.subjects = append(b.subjects, sub)
	}
	return nil
}

// namespace gets a pod's namespace: a process inside sends the descriptor.
func (b *Bench) namespace(ctx context.Context, k *keeper.Keeper, path, pod string) (*tap.Namespace, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	_, stderr, code, err := b.Output(ctx, lab.Pod(pod), exe, "probe", "give-namespace", "--keeper", path, "--key", pod)
	if err != nil || code != 0 {
		return nil, errors.Join(err, fmt.Errorf("namespace of pod %s: exit status %d: %s", pod, code, strings.TrimSpace(stderr)))
	}
	item, err := k.Get(pod)
	if err != nil {
		return nil, err
	}
	return tap.NamespaceFromFile(item.File)
}
