// Package metrics is what Prometheus is told about an agent.
package metrics

import (
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Sample is what is looked up when somebody asks. No key of a map is an address, a pod or a Service: there may be any number.
type Sample struct {
	Verdicts, Drops, Link        map[string]uint64 // by what was done, why, what became of it
	Flows, Taps, Peers, Problems map[string]int    // by state, offloads, state, severity
	FlowsFull                    uint64            // flows that found no room
	FlowsCapacity, Services      int
	HostSockets                  int64 // that listen for NodePorts and host ports
	HostConns, HostSessions      int64 // open ends of TCP connections, and UDP conversations, through them
	Pods, Leases, Resting        int   // attached, and the addresses of pods: held, and not given out again yet
	StateAge, SourceAge          time.Duration
}

// Metrics gathers. Make it with New.
type Metrics struct {
	registry                    *prometheus.Registry
	syncs, asKubeProxy          prometheus.Histogram
	programmed, programmedAsToo prometheus.Histogram
	last                        prometheus.Gauge
	failed                      prometheus.Counter
}

// New makes Metrics of an agent of that version. sample is asked for every scrape; false when there is nothing to tell yet.
func New(version string, sample func() (Sample, bool)) *Metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}) // 1 ms to 16 s
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		syncs:    histogram("tapestry_sync_duration_seconds", "Time from a snapshot of the cluster to its being in force on this node."),
		programmed: histogram("tapestry_network_programming_duration_seconds",
			"Time from a change of a pod or Service, by the controller's clock, to its being in force on this node."),
		// Dashboards and alerts made for kube-proxy go on.
		asKubeProxy:     histogram("kubeproxy_sync_proxy_rules_duration_seconds", "The same as tapestry_sync_duration_seconds."),
		programmedAsToo: histogram("kubeproxy_network_programming_duration_seconds", "The same as tapestry_network_programming_duration_seconds."),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kubeproxy_sync_proxy_rules_last_timestamp_seconds", Help: "When a snapshot of the cluster was in force last.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tapestry_sync_failures_total", Help: "Snapshots of the cluster that were not applied whole.",
		}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tapestry_build_info", Help: "Always 1; the labels say which agent this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.syncs, m.asKubeProxy, m.programmed, m.programmedAsToo, m.last, m.failed, build, collector{sample},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves what was gathered.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Synced notes how long a snapshot took to be in force, and whether it is whole.
func (m *Metrics) Synced(took time.Duration, err error) {
	m.syncs.Observe(took.Seconds())
	m.asKubeProxy.Observe(took.Seconds())
	if err != nil {
		m.failed.Inc()
		return
	}
	m.last.SetToCurrentTime()
}

// Programmed notes how long a change took to be in force.
func (m *Metrics) Programmed(took time.Duration) {
	m.programmed.Observe(took.Seconds())
	m.programmedAsToo.Observe(took.Seconds())
}

// family is a metric of a Sample.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	// each yields the values with their labels.
	each func(s *Sample, yield func(v float64, labels ...string))
}

func one(value func(*Sample) float64) func(*Sample, func(float64, ...string)) {
	return func(s *Sample, yield func(float64, ...string)) { yield(value(s)) }
}

func by[N int | uint64](counts func(*Sample) map[string]N) func(*Sample, func(float64, ...string)) {
	return func(s *Sample, yield func(float64, ...string)) {
		for label, n := range counts(s) {
			yield(float64(n), label)
		}
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tapestry_"+name, help, labels, nil)
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var families = []family{
	{desc("packets_total", "Packets by what was done with them; a superframe is one.", "verdict"), counter,
		by(func(s *Sample) map[string]uint64 { return s.Verdicts })},
	{desc("drops_total", "Packets that were dropped or refused, by reason.", "reason"), counter,
		by(func(s *Sample) map[string]uint64 { return s.Drops })},
	{desc("link_total", "Packets and datagrams of the tunnel, by what became of them.", "event"), counter,
		by(func(s *Sample) map[string]uint64 { return s.Link })},
	{desc("flows", "Tracked flows by state.", "state"), gauge, by(func(s *Sample) map[string]int { return s.Flows })},
	{desc("flows_capacity", "Flows that can be tracked at most."), gauge, one(func(s *Sample) float64 { return float64(s.FlowsCapacity) })},
	{desc("flows_full_total", "Flows that found no room."), counter, one(func(s *Sample) float64 { return float64(s.FlowsFull) })},
	{desc("taps", "TAPs by the offloads in use.", "offloads"), gauge, by(func(s *Sample) map[string]int { return s.Taps })},
	{desc("pods", "Pods that are attached."), gauge, one(func(s *Sample) float64 { return float64(s.Pods) })},
	{desc("address_leases", "Attachments that hold addresses of the node's podCIDRs."), gauge, one(func(s *Sample) float64 { return float64(s.Leases) })},
	{desc("addresses_resting", "Addresses of pods that are gone, which no pod is given yet."), gauge, one(func(s *Sample) float64 { return float64(s.Resting) })},
	{desc("peers", "Other nodes: up (a handshake within three minutes), quiet (none: nothing was sent, or nobody answers), or keyless.", "state"), gauge,
		by(func(s *Sample) map[string]int { return s.Peers })},
	{desc("services", "Services known."), gauge, one(func(s *Sample) float64 { return float64(s.Services) })},
	{desc("host_port_sockets", "Sockets that listen for NodePorts and host ports."), gauge, one(func(s *Sample) float64 { return float64(s.HostSockets) })},
	{desc("host_port_conversations", "Open ends of TCP connections, and UDP conversations, through them.", "protocol"), gauge,
		func(s *Sample, yield func(float64, ...string)) {
			yield(float64(s.HostConns), "tcp")
			yield(float64(s.HostSessions), "udp")
		}},
	{desc("problems", "Problems with objects that this node sees, by severity.", "severity"), gauge, by(func(s *Sample) map[string]int { return s.Problems })},
	{desc("state_age_seconds", "Time since a snapshot of the cluster was applied last."), gauge, one(func(s *Sample) float64 { return s.StateAge.Seconds() })},
	{desc("source_age_seconds", "How old the state in force may be, since its source was not heard of; 0 while all is well."), gauge,
		one(func(s *Sample) float64 { return s.SourceAge.Seconds() })},
}

type collector struct{ sample func() (Sample, bool) }

var _ prometheus.Collector = collector{}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s, ok := c.sample()
	if !ok {
		return
	}
	for _, f := range families {
		f.each(&s, func(v float64, labels ...string) { ch <- prometheus.MustNewConstMetric(f.desc, f.kind, v, labels...) })
	}
}
