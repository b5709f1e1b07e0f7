package agent

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"tapestry.dev/tapestry/overlay"
)

// register puts everything that is measured into registry.
func (a *agent) register(registry *prometheus.Registry) {
	buckets := prometheus.ExponentialBuckets(0.001, 2, 15) // 1 ms to 16 s
	took := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "tapestry_sync_duration_seconds", Help: "Time from a snapshot of the cluster to its being in force on this node.", Buckets: buckets,
	})
	// Dashboards and alerts made for kube-proxy go on.
	asKubeProxy := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "kubeproxy_sync_proxy_rules_duration_seconds", Help: "The same as tapestry_sync_duration_seconds.", Buckets: buckets,
	})
	last := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds", Help: "When a snapshot of the cluster was in force last.",
	})
	failed := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tapestry_sync_failures_total", Help: "Snapshots of the cluster that were not applied whole.",
	})
	programmed := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "tapestry_network_programming_duration_seconds",
		Help: "Time from a change of a pod or Service, by the controller's clock, to its being in force on this node.", Buckets: buckets,
	})
	programmedAsKubeProxy := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "kubeproxy_network_programming_duration_seconds", Help: "The same as tapestry_network_programming_duration_seconds.", Buckets: buckets,
	})
	a.progress.latency = func(d time.Duration) {
		programmed.Observe(d.Seconds())
		programmedAsKubeProxy.Observe(d.Seconds())
	}
	a.progress.applied = func(d time.Duration, err error) {
		took.Observe(d.Seconds())
		asKubeProxy.Observe(d.Seconds())
		if err != nil {
			failed.Inc()
			return
		}
		last.SetToCurrentTime()
	}
	registry.MustRegister(took, asKubeProxy, last, failed, programmed, programmedAsKubeProxy, collector{a},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
}

// buildInfo is a metric that says which agent this is.
func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tapestry_build_info", Help: "Always 1; the labels say which agent this is.",
		ConstLabels: prometheus.Labels{"version": version(), "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}

// The metrics that are looked up when somebody asks. No label is an address, a pod or a Service: there may be any number.
var (
	packetsDesc  = prometheus.NewDesc("tapestry_packets_total", "Packets by what was done with them; a superframe is one.", []string{"verdict"}, nil)
	dropsDesc    = prometheus.NewDesc("tapestry_drops_total", "Packets that were dropped or refused, by reason.", []string{"reason"}, nil)
	linkDesc     = prometheus.NewDesc("tapestry_link_total", "Packets and datagrams of the tunnel, by what became of them.", []string{"event"}, nil)
	flowsDesc    = prometheus.NewDesc("tapestry_flows", "Tracked flows by state.", []string{"state"}, nil)
	capacityDesc = prometheus.NewDesc("tapestry_flows_capacity", "Flows that can be tracked at most.", nil, nil)
	fullDesc     = prometheus.NewDesc("tapestry_flows_full_total", "Flows that found no room.", nil, nil)
	tapsDesc     = prometheus.NewDesc("tapestry_taps", "TAPs by the offloads in use.", []string{"offloads"}, nil)
	peersDesc    = prometheus.NewDesc("tapestry_peers", "Other nodes: up (a handshake within three minutes), quiet (none: nothing was sent, or nobody answers), or keyless.", []string{"state"}, nil)
	servicesDesc = prometheus.NewDesc("tapestry_services", "Services known.", nil, nil)
	socketsDesc  = prometheus.NewDesc("tapestry_host_port_sockets", "Sockets that listen for NodePorts and host ports.", nil, nil)
	connsDesc    = prometheus.NewDesc("tapestry_host_port_conversations", "Open ends of TCP connections, and UDP conversations, through them.", []string{"protocol"}, nil)
	problemsDesc = prometheus.NewDesc("tapestry_problems", "Problems with objects that this node sees, by severity.", []string{"severity"}, nil)
	sourceDesc   = prometheus.NewDesc("tapestry_source_age_seconds", "How old the state in force may be, since its source was not heard of; 0 while all is well.", nil, nil)
	ageDesc      = prometheus.NewDesc("tapestry_state_age_seconds", "Time since a snapshot of the cluster was applied last.", nil, nil)
)

// collector asks the agent's parts.
type collector struct{ a *agent }

var _ prometheus.Collector = collector{}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{packetsDesc, dropsDesc, linkDesc, flowsDesc, capacityDesc, fullDesc, tapsDesc, peersDesc,
		servicesDesc, socketsDesc, connsDesc, problemsDesc, sourceDesc, ageDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Before the first snapshot there is nothing to tell.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	a := c.a
	if a.checkStarted(context.Background()) != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	s, err := attacher{a}.Stats(context.Background())
	if err != nil {
		return
	}
	for _, x := range []struct {
		desc   *prometheus.Desc
		counts map[string]uint64
	}{{packetsDesc, s.Verdicts}, {dropsDesc, s.Drops}, {linkDesc, s.Link}} {
		for label, n := range x.counts {
			count(x.desc, float64(n), label)
		}
	}
	for state, n := range s.Flows {
		gauge(flowsDesc, float64(n), state)
	}
	for offloads, n := range s.Taps {
		gauge(tapsDesc, float64(n), offloads)
	}
	count(fullDesc, float64(s.FlowsFull))
	gauge(capacityDesc, float64(a.agentConfig.flows))
	peers := map[string]int{"up": 0, "quiet": 0, "keyless": 0}
	for _, p := range a.mesh.Status() {
		peers[peerState(&p)]++
	}
	for state, n := range peers {
		gauge(peersDesc, float64(n), state)
	}
	gauge(servicesDesc, float64(len(a.table.Load().Services())))
	np := a.nodePorts.Stats()
	gauge(socketsDesc, float64(np.Sockets))
	gauge(connsDesc, float64(np.Conns), "tcp")
	gauge(connsDesc, float64(np.Sessions), "udp")
	problems := map[string]int{"error": 0, "warning": 0}
	for _, p := range a.currentProblems() {
		problems[string(p.Severity)]++
	}
	for severity, n := range problems {
		gauge(problemsDesc, float64(n), severity)
	}
	gauge(sourceDesc, a.source.Health().Age.Seconds())
	gauge(ageDesc, time.Since(a.progress.lastUpdated()).Seconds())
}

// rejectTime is how long a WireGuard session is used without a new handshake (WireGuard paper, 6.1: Reject-After-Time).
const rejectTime = 180 * time.Second

// peerState tells how it stands with another node: up, quiet or keyless.
func peerState(p *overlay.PeerStatus) string {
	switch {
	case p.PublicKey.IsZero():
		return "keyless"
	case p.HandshakeAge >= 0 && p.HandshakeAge < rejectTime:
		return "up"
	}
	return "quiet"
}
