package bench

import (
	"time"

	"tapestry.dev/tapestry/bench/load"
)

func micros(ns int64) float64 { return float64(ns) / 1e3 }

// The figures that cases share.
var (
	gigabits = Metric{Unit: "Gbit/s", Higher: true, Value: func(s Sample) float64 { return s.BitsPerSecond / 1e9 }}
	// cost is what a path takes from the machine, ends included, whatever speed it reaches.
	cost = Metric{Name: " cpu", Unit: "s/Gbit", Value: func(s Sample) float64 {
		return ratio(s.Busy.Seconds(), float64(s.Bytes)*8/1e9)
	}}
	rate = Metric{Name: " rate", Unit: "1/s", Higher: true, Value: func(s Sample) float64 { return s.PerSecond }}
)

// quantiles are the figures of a latency histogram.
func quantiles() []Metric {
	return []Metric{
		{Name: " p50", Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P50) }},
		{Name: " p90", Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P90) }},
		{Name: " p99", Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P99) }},
		{Name: " p99.9", Unit: "us", Value: func(s Sample) float64 { return micros(s.Latency.P999) }},
	}
}

// TCPCases are the usual ones over TCP, each measurement taking d.
func TCPCases(d time.Duration) []Case {
	stream := func(name string, n int, direction load.Direction) Case {
		return Case{name, Load, "stream", load.Options{Streams: n, Time: d, Direction: direction}, []Metric{gigabits, cost}}
	}
	return []Case{
		stream("tcp stream x1", 1, load.Up),
		stream("tcp stream x4", 4, load.Up),
		stream("tcp both ways", 1, load.Both),
		{"tcp rr", Load, "rr", load.Options{Streams: 1, Time: d}, quantiles()},
		{"tcp crr", Load, "crr", load.Options{Streams: 1, Time: d}, append([]Metric{rate}, quantiles()...)},
	}
}
