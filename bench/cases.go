package bench

import (
	"time"

	"tapestry.dev/tapestry/bench/load"
)

func micros(ns int64) float64 { return float64(ns) / 1e3 }

// The figures that cases share.
var (
	gigabits = Metric{Unit: "Gbit/s", Higher: true, Value: func(s Sample) float64 { return s.BitsPerSecond / 1e9 }}
	// cost is the processor time that a path takes per Gbit, ends included. It does not depend on the speed reached.
	cost = Metric{Name: CostName, Unit: "s/Gbit", Value: func(s Sample) float64 {
		return ratio(s.Busy.Seconds(), float64(s.Bytes)*8/1e9)
	}}
	rate = Metric{Name: RateName, Unit: "1/s", Higher: true, Value: func(s Sample) float64 { return s.PerSecond }}
	// costEach is the processor time of a transaction, or of a packet that arrived.
	costEach = Metric{Name: CostName, Unit: "us", Value: func(s Sample) float64 {
		return ratio(float64(s.Busy.Microseconds()), float64(s.Transactions))
	}}
	packets = Metric{Unit: "packets/s", Higher: true, Value: rate.Value}
	loss    = Metric{Name: LossName, Unit: "%", Value: func(s Sample) float64 { return s.Loss() * 100 }}
)

// What the cases ask web and name servers for. Topologies that have such servers answer for these names.
const (
	HTTPHost = "bench.example"
	DNSName  = "near.default.svc.cluster.local"
)

// quantiles returns the figures of a latency histogram.
func quantiles() []Metric {
	return []Metric{
		{Name: P50, Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P50) }},
		{Name: P90, Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P90) }},
		{Name: P99, Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P99) }},
		{Name: P999, Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P999) }},
	}
}

// TCPCases returns the usual cases over TCP. Each measurement takes d.
func TCPCases(d time.Duration) []Case {
	stream := func(name string, n int, direction load.Direction) Case {
		return Case{name, Load, "stream", load.Options{Streams: n, Time: d, Direction: direction}, []Metric{gigabits, cost}}
	}
	return []Case{
		stream("tcp stream x1", 1, load.Up),
		stream("tcp stream x4", 4, load.Up),
		stream("tcp both ways", 1, load.Both),
		{"tcp rr", Load, "rr", load.Options{Streams: 1, Time: d}, quantiles()},
		{"tcp crr", Load, "crr", load.Options{Streams: 1, Time: d}, transactions()},
	}
}

// transactions returns the figures of transactions: the rate, the cost of one, and the latencies.
func transactions() []Metric { return append([]Metric{rate, costEach}, quantiles()...) }

// UDPCases returns the usual cases over UDP. Each measurement takes d. The sizes are those of the payload. The case
// called 1400 has IPv4 packets of that size, which fit into any MTU that pods have. The sender sends more than gets
// through: packets/s counts the packets that arrive, and the loss says how many did not. Where no packet is lost the
// sender was the limit. On a path of the kernel the sender and the path are one, since sendmmsg(2) carries the packets
// to the other end.
func UDPCases(d time.Duration) []Case {
	datagrams := func(name string, payload int) Case {
		return Case{name, Load, "udp", load.Options{Streams: 1, Time: d, Request: payload}, []Metric{packets, loss, costEach}}
	}
	return []Case{
		datagrams("udp 64 B", 64),
		datagrams("udp 1400 B", 1400-20-8),
		{"udp rr", Load, "udprr", load.Options{Streams: 1, Time: d}, quantiles()},
	}
}

// httpStreams is how many requests are under way at once: wrk's -c in the smaller examples of its manual.
const httpStreams = 8

// HTTPCases returns cases with requests to web servers, eight at a time. Each measurement takes d. HTTP/1.1 with
// keep-alive is measured with all body sizes, the other ways with a body of 1 KiB. Both TLS cases (HTTP/1.1 and HTTP/2)
// use keep-alive.
func HTTPCases(d time.Duration) []Case {
	get := func(name string, s Service, body int, h load.HTTP) Case {
		h.Host = HTTPHost
		h.TLS = s == HTTPS
		return Case{name, s, "http", load.Options{Streams: httpStreams, Time: d, Response: body, HTTP: h}, transactions()}
	}
	return []Case{
		get("http 0 B", HTTP, 0, load.HTTP{}),
		get("http 1 KiB", HTTP, 1<<10, load.HTTP{}),
		get("http 64 KiB", HTTP, 64<<10, load.HTTP{}),
		get("http close 1 KiB", HTTP, 1<<10, load.HTTP{NoKeepAlive: true}),
		get("https 1 KiB", HTTPS, 1<<10, load.HTTP{}),
		get("http2 1 KiB", HTTPS, 1<<10, load.HTTP{Version: "2"}),
	}
}

// DNSCases returns cases with queries for DNSName: one at a time, and eight. Each measurement takes d.
func DNSCases(d time.Duration) []Case {
	return []Case{
		{"dns x1", DNS, "dns", load.Options{Streams: 1, Time: d, Name: DNSName}, transactions()},
		{"dns x8", DNS, "dns", load.Options{Streams: 8, Time: d, Name: DNSName}, transactions()},
	}
}

// IPerf3Cases returns the streams of TCPCases and the packets of UDPCases as iperf3 measures them. Each measurement
// takes at least a second. Package programs tells whether iperf3 is installed.
func IPerf3Cases(d time.Duration) []Case {
	one := []Metric{gigabits, cost}
	return []Case{
		{"iperf3 tcp x1", IPerf3, "iperf3", load.Options{Streams: 1, Time: d}, one},
		{"iperf3 tcp x4", IPerf3, "iperf3", load.Options{Streams: 4, Time: d}, one},
		{"iperf3 udp 1400 B", IPerf3, "iperf3-udp", load.Options{Streams: 1, Time: d, Request: 1400 - 20 - 8}, []Metric{packets, loss, costEach}},
	}
}

// WrkCases returns the three bodies of HTTPCases as wrk measures them. Each measurement takes at least a second.
// Package programs tells whether wrk is installed.
func WrkCases(d time.Duration) []Case {
	get := func(name string, body int) Case {
		return Case{name, HTTP, "wrk", load.Options{Streams: httpStreams, Time: d, Response: body, HTTP: load.HTTP{Host: HTTPHost}}, transactions()}
	}
	return []Case{get("wrk 0 B", 0), get("wrk 1 KiB", 1<<10), get("wrk 64 KiB", 64<<10)}
}
