package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/test/lab"
)

// Measure takes a quick measurement: a TCP stream and request-response on the paths of the demo. 'tapestry-lab bench'
// makes figures that can be compared.
func (c *Cluster) Measure(ctx context.Context) ([][]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, pod := range []string{"near", "far"} {
		server, err := c.start(ctx, lab.Pod(pod), "bench-server", "--port", "5201")
		if err != nil {
			return nil, err
		}
		defer server.stop(cancel)
	}
	rows := [][]string{{"path", "TCP stream", "round trip p50", "p99"}}
	for _, path := range []struct{ name, addr string }{
		{"pod to pod, one node", at(c.ips["near"].v4, 5201)},
		{"ClusterIP, one node", at(c.ips["svc/bench-near"].v4, 5201)},
		{"pod to pod, across nodes", at(c.ips["far"].v4, 5201)},
		{"ClusterIP, across nodes", at(c.ips["svc/bench-far"].v4, 5201)},
		{"pod to pod, across, IPv6", at(c.ips["far"].v6, 5201)},
	} {
		stream, err := c.bench(ctx, "stream", path.addr, time.Second)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path.name, err)
		}
		var rr load.Result
		for rr.Latency == nil { // a machine may let nobody run for all of the time
			if rr, err = c.bench(ctx, "rr", path.addr, 300*time.Millisecond); err != nil {
				return nil, fmt.Errorf("%s: %w", path.name, err)
			}
		}
		rows = append(rows, []string{
			path.name, fmt.Sprintf("%.2f Gbit/s", stream.BitsPerSecond/1e9),
			fmt.Sprintf("%d µs", rr.Latency.P50/1000), fmt.Sprintf("%d µs", rr.Latency.P99/1000),
		})
	}
	return rows, nil
}

func (c *Cluster) bench(ctx context.Context, kind, addr string, d time.Duration) (load.Result, error) {
	var r load.Result
	stdout, stderr, code, err := c.Output(ctx, lab.Pod("client"), c.exe, "bench", kind, addr, "--time", d.String(), "--json")
	if err != nil || code != 0 {
		return r, errors.Join(err, fmt.Errorf("bench %s: exit status %d: %s", kind, code, strings.TrimSpace(stderr)))
	}
	return r, json.Unmarshal([]byte(stdout), &r)
}
