// Package metrics exports all counters of an agent: to Prometheus, and under the same names to the local API.
package metrics

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"tapestry.dev/tapestry/cmd/tapestry/httpserve"
	"tapestry.dev/tapestry/counter"
)

// requestTime limits the duration of a scrape.
const requestTime = 10 * time.Second

// Metrics collects counters. New makes one.
type Metrics struct {
	registry *prometheus.Registry
}

// New returns Metrics for the counters that list returns, and for those of the Go runtime and of the process. It calls
// list for every request.
func New(list func() counter.List) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collector{list}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler returns a handler that serves /metrics.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return mux
}

// Serve serves m on l until ctx ends, and closes l.
func (m *Metrics) Serve(ctx context.Context, l net.Listener) error {
	if err := httpserve.Until(ctx, l, m.Handler(), requestTime); err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// Counters returns the counters of /metrics, sorted by name. Summaries have no quantiles there.
func (m *Metrics) Counters() (counter.List, error) {
	families, err := m.registry.Gather()
	var list counter.List
	for _, f := range families {
		list = append(list, counterOf(f))
	}
	return list, err
}

var kinds = map[counter.Kind]prometheus.ValueType{counter.Gauge: prometheus.GaugeValue, counter.Total: prometheus.CounterValue}

// collector passes a list to Prometheus. It describes no metrics in advance, because the counters are only known when
// list is called.
type collector struct{ list func() counter.List }

var _ prometheus.Collector = collector{}

// Describe implements prometheus.Collector.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, x := range c.list() {
		desc := prometheus.NewDesc(x.Name, x.Help, x.Labels, nil)
		for _, v := range x.Values {
			m, err := metricOf(desc, x.Kind, v)
			if err != nil {
				m = prometheus.NewInvalidMetric(desc, err)
			}
			ch <- m
		}
	}
}

func metricOf(desc *prometheus.Desc, kind counter.Kind, v counter.Value) (prometheus.Metric, error) {
	if kind != counter.Distribution {
		return prometheus.NewConstMetric(desc, kinds[kind], v.N, v.Labels...)
	}
	buckets := map[float64]uint64{}
	for _, b := range v.Buckets {
		buckets[b.Bound] = b.Count
	}
	return prometheus.NewConstHistogram(desc, v.Count, v.N, buckets, v.Labels...)
}

// counterOf converts a family back to a Counter.
func counterOf(f *dto.MetricFamily) counter.Counter {
	c := counter.Counter{Name: f.GetName(), Help: f.GetHelp(), Kind: counter.Gauge}
	for i, m := range f.GetMetric() {
		var v counter.Value
		for _, l := range m.GetLabel() {
			if i == 0 {
				c.Labels = append(c.Labels, l.GetName())
			}
			v.Labels = append(v.Labels, l.GetValue())
		}
		switch {
		case m.Counter != nil:
			c.Kind, v.N = counter.Total, m.GetCounter().GetValue()
		case m.Histogram != nil:
			c.Kind, v.N, v.Count = counter.Distribution, m.GetHistogram().GetSampleSum(), m.GetHistogram().GetSampleCount()
			for _, b := range m.GetHistogram().GetBucket() {
				v.Buckets = append(v.Buckets, counter.Bucket{Bound: b.GetUpperBound(), Count: b.GetCumulativeCount()})
			}
		case m.Summary != nil:
			c.Kind, v.N, v.Count = counter.Distribution, m.GetSummary().GetSampleSum(), m.GetSummary().GetSampleCount()
		default:
			v.N = m.GetGauge().GetValue()
		}
		c.Values = append(c.Values, v)
	}
	return c
}
