package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tapestry.dev/tapestry/cmd/tapestry/health"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/services/dns"
)

// stuckTime is how long it may take to bring the node to a snapshot of the cluster, as kube-proxy counts it.
const stuckTime = time.Minute

// progress is how far the node is behind what it was told of the cluster. The zero value is ready.
type progress struct {
	mu      sync.Mutex
	since   time.Time // since when a snapshot is being applied; zero: none is
	updated time.Time // when one was applied last
	leaving bool      // the node is being deleted
	applied func(took time.Duration, err error)
	latency func(time.Duration)
}

// begin tells that a snapshot is being applied, and gives what to call at the end.
func (p *progress) begin() (end func(leaving bool, err error)) {
	start := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = start
	return func(leaving bool, err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.since, p.leaving = time.Time{}, leaving
		if err == nil {
			p.updated = time.Now()
		}
		if p.applied != nil {
			p.applied(time.Since(start), err)
		}
	}
}

// programmed tells that what was triggered at these times is in force.
func (p *progress) programmed(at []time.Time) {
	if p.latency == nil {
		return
	}
	for _, t := range at {
		p.latency(max(0, time.Since(t))) // by the clock of whoever made the slice
	}
}

// alive says since when the node is stuck with a snapshot, if it is.
func (p *progress) alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stuck := time.Since(p.since); !p.since.IsZero() && stuck > stuckTime {
		return fmt.Errorf("the cluster's state has not been applied for %s", stuck.Truncate(time.Second))
	}
	return nil
}

func (p *progress) eligible() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.leaving
}

// lastUpdated is when a snapshot was applied last; zero before the first.
func (p *progress) lastUpdated() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updated
}

// newHealth joins what is asked about the agent with what it knows.
func (a *agent) newHealth() *health.Health {
	registry := prometheus.NewRegistry()
	a.register(registry)
	return health.New(health.Options{
		Alive: a.progress.alive, Eligible: a.progress.eligible, Updated: a.progress.lastUpdated,
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}),
		Ready: []health.Check{
			{Name: "cluster", Run: a.checkStarted},
			{Name: "keeper", Run: a.checkKeeper},
			{Name: "packets", Run: a.checkPackets},
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
		a.log.Error("health and metrics are not served on this node; stop kube-proxy if it still runs here, or choose another address with --health-address", "err", err)
	}
}

// checkStarted reports an error before the first snapshot of the whole cluster is in force.
func (a *agent) checkStarted(context.Context) error {
	select {
	case <-a.started:
		return nil
	default:
		return errors.New("the cluster's objects are not all known yet, or there is no Node " + a.agentConfig.node + " with a podCIDR among them")
	}
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

// checkPackets sends a packet through the node's own pipeline and waits for the answer: from the gateway to cluster DNS, by the
// flow table and the Table of Services; and where there is a host Port once more from the host's kernel, by the host TAP and
// the poller that reads all TAPs.
func (a *agent) checkPackets(ctx context.Context) error {
	c := a.config.Load()
	for _, addr := range c.LocalAddrs {
		if !slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == addr.Is4() }) {
			continue
		}
		to := netip.AddrPortFrom(addr, 53)
		conn, err := a.node.Gateway().Dial(ctx, "udp", netip.AddrPort{}, to)
		if err != nil {
			return fmt.Errorf("through the gateway: %w", err)
		}
		err = dns.Probe(ctx, conn, "")
		_ = conn.Close()
		if err != nil {
			return fmt.Errorf("through the gateway: %w", err)
		}
		if !a.hasHostPort(addr) {
			continue
		}
		if conn, err = new(net.Dialer).DialContext(ctx, "udp", to.String()); err == nil {
			err = dns.Probe(ctx, conn, "")
			_ = conn.Close()
		}
		if err != nil {
			return fmt.Errorf("from the host, which has a host Port: %w", err)
		}
	}
	return nil
}

// hasHostPort reports whether the host's processes reach pods through a TAP of their own, over the family of like; the zero Addr
// is any.
func (a *agent) hasHostPort(like netip.Addr) bool {
	for _, p := range a.node.Ports() {
		if p.Name == hostKey {
			return !like.IsValid() || slices.ContainsFunc(p.Addrs, func(own netip.Addr) bool { return own.Is4() == like.Is4() })
		}
	}
	return false
}
