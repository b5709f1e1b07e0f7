package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"tapestry.dev/tapestry/cmd/tapestry/health"
	"tapestry.dev/tapestry/netstack/keeper"
)

// newHealth joins what is asked about the agent with what it knows.
func (a *agent) newHealth() *health.Health {
	return health.New(health.Options{
		Alive: a.progress.Alive, Eligible: a.progress.Eligible, Updated: a.progress.Updated,
		Ready: []health.Check{
			{Name: "cluster", Run: a.checkStarted},
			{Name: "keeper", Run: a.checkKeeper},
			{Name: "packets", Run: func(ctx context.Context) error { return a.node.Probe(ctx) }}, // not before the first
		},
	})
}

// serveHealth serves the health endpoints until ctx ends. A taken address costs nothing but them.
func (a *agent) serveHealth(ctx context.Context) {
	if a.healthAddr == "" {
		return
	}
	l, err := net.Listen("tcp", a.healthAddr)
	if err == nil {
		err = a.health.Serve(ctx, l)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error("health is not served on this node; stop kube-proxy if it still runs here, or choose another address with --health-address", "err", err)
	}
}

// hasStarted reports whether the first snapshot is in force, and so whether there is a node.
func (a *agent) hasStarted() bool {
	select {
	case <-a.started:
		return true
	default:
		return false
	}
}

// checkStarted reports an error before the first snapshot of the whole cluster is in force.
func (a *agent) checkStarted(context.Context) error {
	if a.hasStarted() {
		return nil
	}
	if h := a.source.State(); len(h.Waiting) > 0 {
		waiting := errors.New("waiting for " + strings.Join(h.Waiting, ", "))
		if h.Err != nil {
			waiting = fmt.Errorf("%w: %w", waiting, h.Err)
		}
		return waiting
	}
	return fmt.Errorf("there is no Node %s with a podCIDR among the cluster's objects, or not all of them are known yet", a.agentConfig.node)
}

// checkKeeper asks the keeper for something it does not have: without one, the next agent would begin with nothing.
func (a *agent) checkKeeper(context.Context) error {
	it, err := a.kept.Get("health")
	switch {
	case errors.Is(err, keeper.ErrNotFound):
		return nil
	case err == nil:
		_ = it.File.Close()
		return nil
	}
	return fmt.Errorf("%w; the next keeper gets back what it held, if this agent does not end before", err)
}
