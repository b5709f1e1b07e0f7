package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/keeper"
)

// source is where the cluster's objects come from, and where it is told what this node says of itself.
type source interface {
	// Run calls deliver with every new state of the cluster, from one goroutine, until ctx is done.
	Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error
	// Publish tells the other nodes what they need to know of this one. It does not wait for them.
	Publish(kube.NodeStatus)
	// Report tells the authors of objects what is wrong with them.
	Report(objs *kube.Objects, shared, own []kube.Problem)
	// PodIPs gives the addresses that a pod of this node asks for, as kube.PodIPsAnnotation has them, "" for none and for a pod
	// that is not known.
	PodIPs(ctx context.Context, namespace, name string) (string, error)
	Health() cluster.Health
}

var (
	_ source = (*cluster.Cluster)(nil)
	_ source = (*directory)(nil)
)

// sourceConfig is what the flags say of it.
type sourceConfig struct {
	manifests    string // directory of objects
	apiServers   cli.StringSlice
	kubeconfig   string
	serverName   string
	serviceCIDRs cli.StringSlice
}

func (c *sourceConfig) flags() []cli.Flag {
	const category = "Source of the cluster's objects"
	return []cli.Flag{
		&cli.StringFlag{Name: "manifests", Category: category, Usage: "`DIR` with the objects as YAML", Destination: &c.manifests},
		&cli.StringSliceFlag{Name: "api-server", Category: category, Usage: "`URL` of an API server, like https://10.0.0.1:6443, and never a Service's address; repeatable", Destination: &c.apiServers},
		&cli.StringFlag{Name: "kubeconfig", Category: category, Usage: "`FILE` with credentials for the API server (default: those of a pod)", Destination: &c.kubeconfig},
		&cli.StringFlag{Name: "api-server-name", Category: category, Usage: "`NAME` that the API servers' certificates are for (default: the address)", Destination: &c.serverName},
		&cli.StringSliceFlag{Name: "service-cidr", Category: category, Usage: "`RANGE` of Services, for API servers before 1.33, which do not tell; repeatable", Destination: &c.serviceCIDRs},
	}
}

// open gives the one source that the flags name.
func (c *agentConfig) open(log *slog.Logger) (source, error) {
	s := &c.source
	inCluster := s.kubeconfig != "" || len(s.apiServers.Value()) > 0
	if inCluster == (s.manifests != "") {
		given := "none"
		if inCluster {
			given = "both"
		}
		return nil, fmt.Errorf("the agent needs one source of the cluster's objects, and has %s: either --manifests, or --api-server or --kubeconfig or these two", given)
	}
	if !inCluster {
		for name, set := range map[string]bool{"api-server-name": s.serverName != "", "service-cidr": len(s.serviceCIDRs.Value()) > 0} {
			if set {
				return nil, fmt.Errorf("--%s says something of an API server, and --manifests is without one: leave one of them away", name)
			}
		}
		return &directory{path: s.manifests, log: log}, nil
	}
	o := cluster.Options{
		Node: c.node, Servers: s.apiServers.Value(), ServerName: s.serverName, Kubeconfig: s.kubeconfig, State: c.state, Logger: log,
	}
	for _, text := range s.serviceCIDRs.Value() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--service-cidr %q: expected a range like 10.96.0.0/16", text)
		}
		o.ServiceCIDRs = append(o.ServiceCIDRs, p.Masked())
	}
	if c.ingressHTTP != "" || c.ingressHTTPS != "" {
		o.SecretsOf = translate.IngressSecrets
	}
	return cluster.New(o)
}

// follow brings the node to every state of the cluster that comes, until ctx is done or the node has to begin anew. applied
// gets a value after each.
func (a *agent) follow(ctx context.Context, items []keeper.Item, applied chan<- struct{}) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	waiting := false
	err := a.source.Run(ctx, func(objs kube.Objects, found []kube.Problem) {
		err := a.apply(ctx, objs, found, items)
		switch {
		case errors.Is(err, errStartAnew):
			stop(err)
		case errors.Is(err, errNotYet):
			if !waiting {
				a.log.Warn("the node is not started", "err", err)
			}
		case err != nil:
			a.log.Error("the cluster's state was not applied whole", "err", err)
		}
		waiting = errors.Is(err, errNotYet)
		select {
		case applied <- struct{}{}:
		default: // there is one already
		}
	})
	if cause := context.Cause(ctx); errors.Is(cause, errStartAnew) {
		return cause
	}
	return err
}

// directory is the source of a standalone cluster: its agents share a directory of manifests, and tell one another of
// themselves there.
type directory struct {
	path string
	log  *slog.Logger

	mu sync.Mutex
	// mu guards the rest.
	read bool
	last kube.Objects
}

// Run implements source.
func (d *directory) Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error {
	return manifests.Watch(ctx, d.path, manifests.Options{
		// The writer replaces whole files, so there is little to wait for, and a backend that is gone is known sooner.
		Debounce: time.Millisecond,
		OnError: func(err error) {
			d.log.Error("the manifests cannot be used; going on with the last good ones", "err", err)
		},
	}, func(objs kube.Objects) {
		d.mu.Lock()
		d.read, d.last = true, objs
		d.mu.Unlock()
		deliver(objs, nil)
	})
}

// Publish implements source.
func (d *directory) Publish(s kube.NodeStatus) {
	if _, err := manifests.Publish(d.path, s); err != nil {
		d.log.Error("other nodes will not learn this node's key", "err", err)
	}
}

// Report implements source: whoever writes manifests reads the problems in the nodes' status.
func (d *directory) Report(*kube.Objects, []kube.Problem, []kube.Problem) {}

// PodIPs implements source.
func (d *directory) PodIPs(_ context.Context, namespace, name string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.last.Pods {
		if p.Namespace == namespace && p.Name == name {
			return p.Annotations[kube.PodIPsAnnotation], nil
		}
	}
	return "", nil
}

// Health implements source.
func (d *directory) Health() cluster.Health {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.read {
		return cluster.Health{Waiting: []string{"manifests without mistakes in " + d.path}}
	}
	return cluster.Health{Synced: true}
}
