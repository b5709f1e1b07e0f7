package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/test/lab"
)

// benchRows runs the benchmark and gives what it printed, by subject.
func benchRows(t *testing.T, args ...string) map[string][]bench.Row {
	t.Helper()
	got := tapestry(t, append(append([]string{"bench"}, args...), "--rounds", "1", "--time", "50ms", "--json")...)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	rows := map[string][]bench.Row{}
	for line := range strings.Lines(got.stdout) {
		var r bench.Row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		// The processors' time is counted in hundredths of a second, of which a short measurement may take none.
		if r.Suite != args[0] || r.N != 1 || r.Value <= 0 && r.Unit != "s/Gbit" {
			t.Errorf("%+v", r)
		}
		rows[r.Subject] = append(rows[r.Subject], r)
	}
	noLab(t, "bench-")
	return rows
}

// TestBench measures our paths beside a baseline, from the command line.
func TestBench(t *testing.T) {
	pod := benchRows(t, "pod", "--subject", "same-node", "--subject", "null-loop")
	if len(pod) != 2 || len(pod["same-node"]) != len(pod["null-loop"]) {
		t.Errorf("%d subjects, with %d and %d rows; want as many of each", len(pod), len(pod["same-node"]), len(pod["null-loop"]))
	}
	for _, r := range pod["same-node"] {
		if r.Baseline != "null-loop" || r.Ratio <= 0 && r.Unit != "s/Gbit" {
			t.Errorf("%s is not compared: %+v", r.Case, r)
		}
	}
	service := benchRows(t, "service", "--subject", "direct-1", "--subject", "cluster-ip-1", "--case", "tcp rr", "--case", "tcp crr")
	if !slices.ContainsFunc(service["cluster-ip-1"], func(r bench.Row) bool { return r.Case == "tcp crr rate" && r.Ratio > 0 }) {
		t.Errorf("no ratio of connections to a ClusterIP among %+v", service["cluster-ip-1"])
	}
}

// TestBenchEdges measures what goes through host sockets.
func TestBenchEdges(t *testing.T) {
	for suite, subject := range map[string]string{"nodeport": "node-port-across", "egress": "egress"} {
		if rows := benchRows(t, suite, "--subject", subject, "--case", "tcp rr", "--case", "tcp stream x1"); len(rows[subject]) != 2+4 {
			t.Errorf("%s: %+v", suite, rows)
		}
	}
}

// TestBenchRefuses what it does not know, before anything is started.
func TestBenchRefuses(t *testing.T) {
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"bench", "pods"}, []string{`suite "pods"`, "pod, service, cross-node"}},
		{[]string{"bench", "--subject", "best"}, []string{`--subject "best"`, "same-node"}},
		{[]string{"bench", "pod", "--case", "tcp"}, []string{`--case "tcp"`, "tcp stream x1"}},
		{[]string{"bench", "--rounds", "0"}, []string{"--rounds of at least 1"}},
		{[]string{"bench", "pod", "--fast"}, []string{"--fast"}},
	} {
		got := tapestry(t, test.args...)
		if got.code != 1 || got.stdout != "" {
			t.Errorf("%q: exit status %d, want 1; stdout %q", test.args, got.code, got.stdout)
		}
		contains(t, got.stderr, test.says...)
	}
}

// TestBenchInterrupted takes everything down.
func TestBenchInterrupted(t *testing.T) {
	state, err := lab.DefaultStateDir()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self(t), "bench", "cross-node", "--time", "1m")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if names, _ := lab.Names(state); slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "bench-") }) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no lab came up")
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its status is looked at
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit status %d, want 130", code)
	}
	noLab(t, "bench-")
}
