package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/test/lab"
)

// mayBeNothing reports whether a figure may be 0 in a short measurement: loss, and processor time, which is counted in
// hundredths of a second.
func mayBeNothing(r bench.Row) bool { return r.Unit == "%" || strings.HasSuffix(r.Case, " cpu") }

// benchRows runs the benchmark and returns the rows that it printed, by subject.
func benchRows(t *testing.T, args ...string) map[string][]bench.Row {
	t.Helper()
	got := tapestryLab(t, append(append([]string{"bench"}, args...), "--rounds", "1", "--time", "50ms", "--json")...)
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	rows := map[string][]bench.Row{}
	for line := range strings.Lines(got.stdout) {
		var r bench.Row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if r.Suite != args[0] || r.N != 1 || r.Value < 0 || r.Value == 0 && !mayBeNothing(r) {
			t.Errorf("%+v", r)
		}
		rows[r.Subject] = append(rows[r.Subject], r)
	}
	noLab(t, "bench-")
	return rows
}

// TestBench measures paths of Tapestry beside a baseline, from the command line.
func TestBench(t *testing.T) {
	pod := benchRows(t, "pod", "--subject", "same-node", "--subject", "null-loop")
	if len(pod) != 2 || len(pod["same-node"]) != len(pod["null-loop"]) {
		t.Errorf("%d subjects, with %d and %d rows; want as many of each", len(pod), len(pod["same-node"]), len(pod["null-loop"]))
	}
	for _, r := range pod["same-node"] {
		if r.Baseline != "null-loop" || r.Ratio <= 0 && !mayBeNothing(r) {
			t.Errorf("%s is not compared: %+v", r.Case, r)
		}
	}
	service := benchRows(t, "service", "--subject", "direct-1", "--subject", "cluster-ip-1", "--case", "tcp rr", "--case", "tcp crr")
	if !slices.ContainsFunc(service["cluster-ip-1"], func(r bench.Row) bool { return r.Case == "tcp crr rate" && r.Ratio > 0 }) {
		t.Errorf("no ratio of connections to a ClusterIP among %+v", service["cluster-ip-1"])
	}
}

// TestBenchEdges measures what goes through host sockets and Tapestry's own servers.
func TestBenchEdges(t *testing.T) {
	for _, test := range []struct {
		suite, subject string
		cases          []string
		rows           int
	}{
		{"nodeport", "node-port-across", []string{"tcp rr", "tcp stream x1"}, 4 + 2},
		{"egress", "egress", []string{"udp rr", "tcp stream x4"}, 4 + 2},
		{"ingress", "ingress", []string{"http 1 KiB", "http2 1 KiB"}, 2 * 6},
		{"dns", "cluster-dns", []string{"dns x8"}, 6},
	} {
		args := []string{test.suite, "--subject", test.subject}
		for _, c := range test.cases {
			args = append(args, "--case", c)
		}
		if rows := benchRows(t, args...); len(rows) != 1 || len(rows[test.subject]) != test.rows {
			t.Errorf("%s: %+v, want %d rows", test.suite, rows, test.rows)
		}
	}
}

// TestBenchCharts draws the measurements.
func TestBenchCharts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "charts")
	got := tapestryLab(t, "bench", "pod", "--subject", "kernel-bridge", "--case", "tcp rr", "--rounds", "1", "--time", "10ms", "--chart", dir, "--chart-format", "both")
	if got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	contains(t, got.stdout, "commit ", "Linux ", "MTU 1420", "kernel-bridge", "tcp rr p50")
	for name, start := range map[string]string{"pod.svg": "<?xml", "pod.png": "\x89PNG"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.HasPrefix(string(b), start) {
			t.Errorf("%s: %v, %.10q", name, err, b)
		}
	}
}

// TestBenchList lists suites. Which programs are missing depends on the machine.
func TestBenchList(t *testing.T) {
	got := tapestryLab(t, "bench", "--list", "pod", "ingress", "scale")
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	}
	contains(t, got.stdout, "pod: ", "ours: same-node", "others: null-loop, kernel-bridge", "tcp stream x1", "ingress: ", "http2 1 KiB", "scale: ")
	if strings.Contains(got.stdout, "nodeport: ") {
		t.Errorf("suites that were not asked for are listed: %s", got.stdout)
	}
}

// TestBenchRefuses: unknown names are refused before anything is started.
func TestBenchRefuses(t *testing.T) {
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"bench", "pods"}, []string{`suite "pods"`, "pod, service, cross-node"}},
		{[]string{"bench", "--subject", "best"}, []string{`--subject "best"`, "same-node"}},
		{[]string{"bench", "pod", "--case", "tcp"}, []string{`--case "tcp"`, "tcp stream x1"}},
		{[]string{"bench", "--rounds", "0"}, []string{"--rounds of at least 1"}},
		{[]string{"bench", "pod", "--chart-format", "gif"}, []string{"svg, png, both"}},
		{[]string{"bench", "scale", "--case", "tcp rr"}, []string{"measured as a whole"}},
		{[]string{"bench", "pod", "--fast"}, []string{"--fast"}},
	} {
		got := tapestryLab(t, test.args...)
		if got.code != 1 || got.stdout != "" {
			t.Errorf("%q: exit status %d, want 1; stdout %q", test.args, got.code, got.stdout)
		}
		contains(t, got.stderr, test.says...)
	}
}

// TestBenchInterrupted: an interrupted benchmark takes everything down.
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
