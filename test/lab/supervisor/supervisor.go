package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/test/lab/kubelet"
	"tapestry.dev/tapestry/test/lab/plan"
	"tapestry.dev/tapestry/test/lab/process"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/underlay"
)

// Config says what a supervisor is to do.
type Config struct {
	Name string
	// Dir is the lab's folder, which exists already.
	Dir string
	// Files are the files and folders with the manifests.
	Files []string
	// MTU is that of the underlay, in bytes.
	MTU int
	// Exe is this program, which also acts as the shim and as the built-in server.
	Exe string
	// Product is the executable of agent and step, Keeper that of the keeper. AgentFlags are more flags for agents.
	Product, Keeper string
	AgentFlags      []string
	// LoadBalancers are the ranges that nodes route into their host TAPs besides those of pods and Services.
	LoadBalancers []netip.Prefix
	// NoHostTAP leaves nodes without a host TAP.
	NoHostTAP bool
	// Announced has the agents expect announcers of these kinds.
	Announced []string
	// Env is the base environment of agents and containers.
	Env []string
	// KeepCapabilities leaves agents the capabilities of root. They need none.
	KeepCapabilities bool
}

// lab is a running lab.
type lab struct {
	cfg      Config
	log      *slog.Logger
	planner  *plan.Planner
	kubelet  *kubelet.Kubelet
	underlay *underlay.Underlay
	outside  process.Place

	kick chan struct{} // something changed; has room for one
	quit context.CancelFunc

	mu       sync.Mutex // guards the fields below
	nodes    map[string]*node
	cluster  *plan.Cluster
	mtu      int // of pods
	shown    kube.Objects
	statuses map[string]kubelet.Status // by pod UID
	applied  int
	failed   error         // what is wrong with the present version of the files
	news     chan struct{} // closed at the next change
}

// Run runs a lab. It returns when ctx ends or a client asks for it. Only processes are then left that the end of the
// PID namespace ends.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	l := &lab{
		cfg: cfg, log: log, quit: quit,
		planner: plan.New(plan.Options{
			Server: []string{cfg.Exe, "serve"}, Env: cfg.Env, Upstreams: underlay.Resolvers(),
		}),
		kick: make(chan struct{}, 1), nodes: map[string]*node{}, statuses: map[string]kubelet.Status{},
		news: make(chan struct{}),
	}
	l.kubelet = kubelet.New(kubelet.Options{Sandbox: l.newSandbox, Changed: l.podChanged, Log: log})
	changes, err := watch(ctx, cfg.Files, log)
	if err != nil {
		return err
	}
	objects, err := read(cfg.Files)
	if err != nil {
		return err
	}
	if err := l.bringUp(ctx, objects); err != nil {
		return err
	}
	go limitLogs(ctx, cfg.Dir, log)
	stopServing, err := l.serve(ctx)
	if err != nil {
		return err
	}
	defer stopServing()
	log.Info("lab is up", "name", cfg.Name, "nodes", len(l.cluster.Nodes), "pods", len(l.cluster.Pods))
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
			l.reload(ctx)
		case <-l.kick:
			l.publish()
		}
	}
}

// read reads the files with the manifests.
func read(paths []string) (kube.Objects, error) {
	objects, err := manifests.Read(paths...)
	if err != nil {
		return objects, err
	}
	if len(objects.Nodes) == 0 {
		return objects, fmt.Errorf("%v: there is no Node: a lab needs at least one, such as {apiVersion: v1, kind: Node, metadata: {name: n1}}", paths)
	}
	return objects, nil
}

// bringUp applies the first version of the files.
func (l *lab) bringUp(ctx context.Context, objects kube.Objects) error {
	for _, dir := range []string{"objects", "objects/" + manifests.StatusDir, "nodes", "pods"} {
		if err := os.MkdirAll(filepath.Join(l.cfg.Dir, dir), 0o700); err != nil {
			return err
		}
	}
	cluster, err := l.planner.Plan(objects)
	if err != nil {
		return err
	}
	if l.underlay, err = underlay.New(cluster.Underlay, l.cfg.MTU); err != nil {
		return fmt.Errorf("make the underlay: %w", err)
	}
	out := l.underlay.Namespace(underlay.Outside)
	if l.outside, err = l.nodePlace(underlay.Outside, out, filepath.Join(l.cfg.Dir, underlay.Outside)); err != nil {
		return err
	}
	if err := l.underlay.ServeDNS(ctx, l.log); err != nil {
		return fmt.Errorf("serve DNS outside: %w", err)
	}
	return l.apply(ctx, cluster)
}

// reload applies a new version of the files, or keeps the last good one.
func (l *lab) reload(ctx context.Context) {
	objects, err := read(l.cfg.Files)
	var cluster *plan.Cluster
	if err == nil {
		cluster, err = l.planner.Plan(objects)
	}
	if err == nil {
		err = l.apply(ctx, cluster)
	}
	if err != nil {
		l.log.Error("the files are not applied, the last good version stays", "err", err)
		l.mu.Lock()
		l.failed = err
		l.mu.Unlock()
		l.changed()
	}
}

// apply makes the lab match the plan: nodes, objects, pods.
func (l *lab) apply(ctx context.Context, c *plan.Cluster) error {
	mtu := c.MTU(l.cfg.MTU)
	ranges := c.Ranges()
	wanted := map[string]plan.Node{}
	for _, n := range c.Nodes {
		wanted[n.Name] = n
	}
	l.mu.Lock()
	running := maps.Clone(l.nodes)
	l.mtu = mtu
	l.mu.Unlock()
	for name, n := range running {
		if want, ok := wanted[name]; !ok || !want.Equal(n.Node) {
			l.removeNode(n)
			delete(running, name)
		}
	}
	var errs []error
	var fresh []*node
	for _, want := range c.Nodes {
		if n, ok := running[want.Name]; ok {
			errs = append(errs, n.route(l, ranges))
			continue
		}
		n, err := l.newNode(want, mtu)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fresh = append(fresh, n)
	}
	fresh, err := l.prepare(ctx, fresh, ranges)
	errs = append(errs, err)
	l.mu.Lock()
	for _, n := range fresh {
		l.nodes[n.Name] = n
	}
	l.cluster = c
	l.mu.Unlock()
	// The objects are written before agents start, and before there are pods to attach.
	l.publish()
	for _, n := range fresh {
		if n.agent != nil {
			n.agent.start()
		}
	}
	l.kubelet.Set(c.Pods)
	// This comes last: a client that sees the count grow and then waits until everything is ready waits for the pods of
	// this version.
	l.mu.Lock()
	l.applied++
	l.failed = nil
	l.mu.Unlock()
	l.changed()
	return errors.Join(errs...)
}

// prepare prepares all nodes for their agents concurrently, and returns the nodes that are prepared.
func (l *lab) prepare(ctx context.Context, fresh []*node, ranges translate.Ranges) ([]*node, error) {
	errs := make([]error, len(fresh))
	var all sync.WaitGroup
	for i, n := range fresh {
		all.Go(func() { errs[i] = n.prepare(ctx, l, ranges) })
	}
	all.Wait()
	var good []*node
	for i, n := range fresh {
		if errs[i] != nil {
			n.close(l)
			continue
		}
		good = append(good, n)
	}
	return good, errors.Join(errs...)
}

func (l *lab) removeNode(n *node) {
	l.mu.Lock()
	delete(l.nodes, n.Name)
	l.mu.Unlock()
	n.close(l)
	if err := os.RemoveAll(n.dir); err != nil {
		l.log.Warn("cannot remove the folder of a node", "node", n.Name, "err", err)
	}
	if err := os.Remove(filepath.Join(rpc.ObjectsDir(l.cfg.Dir), manifests.StatusDir, n.Name+".yaml")); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.log.Warn("cannot remove the status of a node", "node", n.Name, "err", err)
	}
}

// node returns a running node, or nil when there is none of that name.
func (l *lab) node(name string) *node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

func (l *lab) podMTU() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mtu
}

// podChanged records a pod's new status.
func (l *lab) podChanged(uid string, s kubelet.Status) {
	l.mu.Lock()
	l.statuses[uid] = s
	l.mu.Unlock()
	l.changed()
}

// changed makes Run write the objects again, and wakes those who wait.
func (l *lab) changed() {
	l.mu.Lock()
	close(l.news)
	l.news = make(chan struct{})
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default: // a write is pending already
	}
}

// publish writes the objects as they are now. Only the main goroutine calls it.
func (l *lab) publish() {
	l.mu.Lock()
	statuses := maps.Clone(l.statuses)
	cluster := l.cluster
	l.mu.Unlock()
	objects := cluster.Snapshot(statuses)
	l.mu.Lock()
	l.shown = objects
	for uid, s := range statuses {
		if s.Gone {
			delete(l.statuses, uid)
			l.planner.Forget(uid)
		}
	}
	l.mu.Unlock()
	if err := writeObjects(rpc.ObjectsDir(l.cfg.Dir), objects); err != nil {
		l.log.Error("cannot write the objects", "err", err)
	}
}

// objectFile is a file for objects of some kinds.
type objectFile struct {
	name  string
	kinds []string
}

// objectFiles are written in this order, so that objects come before those that refer to them. Kinds that change
// together share a file, so that a small change is a small file. The first file has all kinds that no other file has.
var objectFiles = []objectFile{
	{"cluster.yaml", nil},
	{"config.yaml", []string{"Secret", "ConfigMap"}},
	{"pods.yaml", []string{"Pod"}},
	{"services.yaml", []string{"Service"}},
	{"endpoints.yaml", []string{"EndpointSlice"}},
	{"ingresses.yaml", []string{"Ingress", "IngressClass"}},
}

// writeObjects writes the objects into objectFiles.
func writeObjects(dir string, o kube.Objects) error {
	parts := make([]kube.Builder, len(objectFiles))
	for obj := range o.All() {
		kind := kube.KindOf(obj).Name
		at := slices.IndexFunc(objectFiles, func(f objectFile) bool { return slices.Contains(f.kinds, kind) })
		parts[max(at, 0)].Add(obj, "")
	}
	for i, f := range objectFiles {
		if _, err := manifests.Write(dir, f.name, parts[i].Objects()); err != nil {
			return err
		}
	}
	return nil
}
