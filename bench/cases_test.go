package bench

import (
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench/load"
)

func TestCases(t *testing.T) {
	byProgram := []string{"iperf3", "iperf3-udp", "wrk"} // package programs has them
	names := map[string]bool{}
	for _, cases := range []func(time.Duration) []Case{TCPCases, UDPCases, HTTPCases, DNSCases, IPerf3Cases, WrkCases} {
		for _, c := range cases(time.Second) {
			if names[c.Name] {
				t.Errorf("two cases are called %s", c.Name)
			}
			names[c.Name] = true
			if _, err := c.Options.Complete(); err != nil || c.Options.Time != time.Second {
				t.Errorf("%s: %+v, %v", c.Name, c.Options, err)
			}
			if !slices.Contains(append(byProgram, load.Commands...), c.Command) {
				t.Errorf("%s: no program has the command %q", c.Name, c.Command)
			}
			if (c.Service == HTTPS) != c.Options.HTTP.TLS || (c.Service == DNS) != (c.Options.Name != "") {
				t.Errorf("%s: %s with %+v", c.Name, c.Service, c.Options)
			}
			figures := map[string]bool{}
			for _, m := range c.Metrics {
				if figures[m.Name] || m.Unit == "" {
					t.Errorf("%s: figure %q in %q", c.Name, m.Name, m.Unit)
				}
				figures[m.Name] = true
			}
			// A case with a latency has its quantiles, a case with a throughput has its cost.
			if figures[" p50"] != figures[" p99.9"] || figures[" p50"] == figures[""] || figures[""] != (figures[" cpu"] && !figures[" p50"]) {
				t.Errorf("%s: figures %v", c.Name, figures)
			}
		}
	}
}
