// Package controller is the command that decides what is decided once for a whole cluster.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/httpserve"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/connect"
	"tapestry.dev/tapestry/kube/cluster/control"
	"tapestry.dev/tapestry/kube/cluster/lease"
	"tapestry.dev/tapestry/kube/controller"
)

// config holds the values of the flags.
type config struct {
	connect     connect.Options
	apiServers  cli.StringSlice
	namespace   string
	lease       string
	identity    string
	defaultLB   bool
	ingress     bool
	health      string
	hostnameErr error
}

// Command is "tapestry controller".
func Command() *cli.Command {
	var c config
	host, err := os.Hostname()
	c.hostnameErr = err
	const source, role = "API server", "Role"
	return &cli.Command{
		Name:  "controller",
		Usage: "decide what is decided once for a cluster: addresses of load balancers, and status",
		Description: `Gives Services of type LoadBalancer addresses of AddressPools, and Services, Ingresses and the objects of
tapestry.dev their status. Any number of these processes may run; one of them leads. Agents need none of it to carry packets: without a
controller everything goes on as it is, and only new load balancers wait.`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "api-server", Category: source, Usage: "`URL` of an API server, like https://10.0.0.1:6443; repeatable", Destination: &c.apiServers},
			&cli.StringFlag{Name: "kubeconfig", Category: source, Usage: "`FILE` with credentials for the API server (default: those of a pod)", Destination: &c.connect.Kubeconfig},
			&cli.StringFlag{Name: "credentials", Category: source, Usage: "`DIR` with the files token and ca.crt (default: that of a pod)", Destination: &c.connect.Credentials},
			&cli.StringFlag{Name: "api-server-name", Category: source, Usage: "`NAME` that the API servers' certificates are for (default: the address)", Destination: &c.connect.ServerName},
			&cli.StringFlag{Name: "lease-namespace", Category: role, Usage: "`NAMESPACE` of the Lease", Value: "kube-system", Destination: &c.namespace},
			&cli.StringFlag{Name: "lease-name", Category: role, Usage: "`NAME` of the Lease by which one of several processes leads", Value: "tapestry-controller", Destination: &c.lease},
			&cli.StringFlag{Name: "identity", Category: role, Usage: "`NAME` of this process, which no other has", Value: host, DefaultText: "the host's", Destination: &c.identity},
			&cli.BoolFlag{Name: "default-load-balancer", Category: "Services", Usage: "also serve Services of type LoadBalancer that name no class", Value: true, Destination: &c.defaultLB},
			&cli.BoolFlag{Name: "ingress", Category: "Services", Usage: "write the status of Ingresses, which agents serve", Value: true, Destination: &c.ingress},
			&cli.StringFlag{Name: "health", Category: "Reports", Usage: "`ADDRESS` on which to answer /livez and /readyz, \"\" for not", Value: ":10257", Destination: &c.health},
		},
		Action: func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return cli.Exit("controller takes no arguments: see 'tapestry controller --help'", 2)
			}
			return c.run(ctx.Context)
		},
	}
}

// errEnds makes the process end with an error, so that it is started anew: it was the leader, and is not any longer.
var errEnds = errors.New("this process no longer leads")

// run leads, when it is this process's turn, until ctx is done.
func (c *config) run(ctx context.Context) error {
	if c.identity == "" {
		return errors.Join(errors.New("--identity is empty: give the process a name that no other has"), c.hostnameErr)
	}
	c.connect.Servers = c.apiServers.Value()
	to, err := connect.To(c.connect)
	if err != nil {
		return err
	}
	defer to.Close()
	log := slog.Default()
	link := to.Link(log)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var leads atomic.Bool
	ended := make(chan error, 1)
	if c.health != "" {
		l, err := net.Listen("tcp", c.health)
		if err != nil {
			return fmt.Errorf("serve --health: %w", err)
		}
		go func() { ended <- httpserve.Until(ctx, l, healthOf(&leads), 5*time.Second) }()
	} else {
		ended <- nil
	}
	running := make(chan struct{})
	go func() { defer close(running); link.Run(ctx) }()
	elector := lease.Elector{Namespace: c.namespace, Name: c.lease, Identity: c.identity, Rest: to.Rest, Log: log}
	err = elector.Run(ctx, func(ctx context.Context) {
		leads.Store(true)
		var announcements controller.Announcements
		decide := func(objs kube.Objects) (kube.Objects, []kube.Problem) { return c.decide(objs, &announcements) }
		control.Run(ctx, control.Options{Name: c.identity, Rest: to.Rest, Link: link, Log: log, Decide: decide})
	})
	stop()
	<-running
	if err != nil {
		return fmt.Errorf("%w: %w", errEnds, err)
	}
	return <-ended
}

// decide makes all decisions.
func (c *config) decide(objs kube.Objects, announcements *controller.Announcements) (kube.Objects, []kube.Problem) {
	now := time.Now()
	out, problems := controller.LoadBalancers(objs, controller.Options{Default: c.defaultLB, Now: now})
	out = controller.PortsServed(out, now)
	out = announcements.Status(controller.EgressStatus(out, now), now)
	if c.ingress {
		out = controller.IngressStatus(out)
	}
	return out, problems
}

// healthOf answers that the process lives, whether or not it leads, and says which.
func healthOf(leads *atomic.Bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/livez" && r.URL.Path != "/readyz" {
			http.NotFound(w, r)
			return
		}
		text := "ok: another one leads"
		if leads.Load() {
			text = "ok: this one leads"
		}
		fmt.Fprintln(w, text)
	})
}
