package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/agent/follow"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/kube/translate"
)

// source delivers the cluster's objects.
type source interface {
	follow.Source
	// PodIPs returns the addresses that a pod of this node asks for, in the form of kube.PodIPsAnnotation. It returns
	// "" if the pod asks for none or is not known.
	PodIPs(ctx context.Context, namespace, name string) (string, error)
	// State returns the state of the source.
	State() kube.SourceState
}

var (
	_ source = (*cluster.Cluster)(nil)
	_ source = (*manifests.Directory)(nil)
)

// sourceConfig holds the values of the flags about the source.
type sourceConfig struct {
	manifests    string // directory of objects
	apiServers   cli.StringSlice
	kubeconfig   string
	serverName   string
	serviceCIDRs cli.StringSlice
	nodeCIDRs    cli.StringSlice
}

func (c *sourceConfig) flags() []cli.Flag {
	const category = "Source of the cluster's objects"
	return []cli.Flag{
		&cli.StringFlag{Name: "manifests", Category: category, Usage: "`DIR` with the objects as YAML", Destination: &c.manifests},
		&cli.StringSliceFlag{Name: "api-server", Category: category, Usage: "`URL` of an API server, like https://10.0.0.1:6443, and never a Service's address; repeatable", Destination: &c.apiServers},
		&cli.StringFlag{Name: "kubeconfig", Category: category, Usage: "`FILE` with credentials for the API server (default: those of a pod)", Destination: &c.kubeconfig},
		&cli.StringFlag{Name: "api-server-name", Category: category, Usage: "`NAME` that the API servers' certificates are for (default: the address)", Destination: &c.serverName},
		&cli.StringSliceFlag{Name: "service-cidr", Category: category, Usage: "`RANGE` of Services, for API servers before 1.33, which do not announce it; repeatable", Destination: &c.serviceCIDRs},
		&cli.StringSliceFlag{Name: "node-cidr", Category: category, Usage: "`RANGE` of the addresses of other nodes; addresses of Nodes outside of it are ignored; repeatable (default: the private ranges, and public addresses if this node has one itself)", Destination: &c.nodeCIDRs},
	}
}

// open opens the source that the flags name. There must be exactly one. held is closed when the node is this agent's.
func (c *agentConfig) open(log *slog.Logger, held <-chan struct{}) (source, error) {
	s := &c.source
	inCluster := s.kubeconfig != "" || len(s.apiServers.Value()) > 0
	if inCluster == (s.manifests != "") {
		given := "none"
		if inCluster {
			given = "both"
		}
		return nil, fmt.Errorf("the agent needs one source of the cluster's objects, and has %s: give either --manifests, or --api-server or --kubeconfig or both of these", given)
	}
	if !inCluster {
		for name, set := range map[string]bool{
			"api-server-name": s.serverName != "", "service-cidr": len(s.serviceCIDRs.Value()) > 0, "node-cidr": len(s.nodeCIDRs.Value()) > 0,
		} {
			if set {
				return nil, fmt.Errorf("--%s is about an API server, but --manifests uses none: remove one of the two flags", name)
			}
		}
		return manifests.NewDirectory(s.manifests, log), nil
	}
	o := cluster.Options{
		Node: c.node, Servers: s.apiServers.Value(), ServerName: s.serverName, Kubeconfig: s.kubeconfig, State: c.state, Held: held, Logger: log,
	}
	var err error
	if o.ServiceCIDRs, err = ranges("service-cidr", s.serviceCIDRs.Value()); err != nil {
		return nil, err
	}
	if o.NodeCIDRs, err = ranges("node-cidr", s.nodeCIDRs.Value()); err != nil {
		return nil, err
	}
	o.Announce = len(c.announce.kinds) > 0
	if c.ingressHTTP != "" || c.ingressHTTPS != "" {
		o.SecretsOf = translate.IngressSecrets
	}
	return cluster.New(o)
}

// ranges parses the values of a flag.
func ranges(flag string, texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--%s %q: expected a range like 10.96.0.0/16", flag, text)
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("--%s %q: write this range as one of IPv4, like 10.96.0.0/16", flag, text)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}
