package scale_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/scale"
	"tapestry.dev/tapestry/cmd/tapestry/app"
	"tapestry.dev/tapestry/test/userns"
)

// The suites start this program as their agents, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		os.Exit(app.Run(os.Args))
	}
	userns.Main(m)
}

func small() scale.Options {
	return scale.Options{
		Agent: func(args ...string) *exec.Cmd {
			return exec.Command("/proc/self/exe", append([]string{"agent"}, args...)...)
		},
		Rounds: 2, Services: []int{5}, Endpoints: 2, Changes: 5, Flows: 2000, Pods: 2, Peers: 3,
		Watch: 200 * time.Millisecond,
	}
}

// Every figure is there, with as many rounds as asked for. The test does not judge the figures.
func TestSuites(t *testing.T) {
	rows, err := scale.Run(t.Context(), small())
	if err != nil {
		t.Fatal(err)
	}
	check(t, rows, "scale", []string{
		"load 5 x 2 first packet", "load 5 x 2 RSS", "load 5 x 2 read", "load 5 x 2 translate", "load 5 x 2 table",
		"load 5 x 2 heap", "change among 5 x 2 p50", "change among 5 x 2 p99", "2000 flows insert",
		"2000 flows RSS per flow", "2000 flows lookup hit", "2000 flows lookup miss",
	})
	rows, err = scale.Memory(t.Context(), small())
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{"idle, 0 pods", "idle, 2 pods"} {
		want = append(want, name+" RSS", name+" anonymous", name+" program", name+" shared")
	}
	want = append(want, "per pod", "idle, 2 pods processor", "per flow", "calling 3 peers processor",
		"idle, 3 peers RSS", "idle, 3 peers anonymous", "idle, 3 peers program", "idle, 3 peers shared",
		"per peer", "idle, 3 peers processor")
	check(t, rows, "memory", want)
}

// A failure on the way to a node is reported, and leaves nothing behind.
func TestNoAgent(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	o := small()
	o.Agent = func(...string) *exec.Cmd { return exec.Command("/nothing/here") }
	for name, run := range map[string]func(context.Context, scale.Options) ([]bench.Row, error){
		"scale: load 5 x 2: start the agent": scale.Run, "memory: start the agent": scale.Memory,
	} {
		if _, err := run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("got %v, want %s", err, name)
		}
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// check compares the cases of rows. Figures of time and of whole processes must not be zero.
func check(t *testing.T, rows []bench.Row, suite string, want []string) {
	t.Helper()
	if len(rows) != len(want) {
		t.Errorf("%s: %d rows, want %d", suite, len(rows), len(want))
	}
	for i, r := range rows[:min(len(rows), len(want))] {
		if r.Suite != suite || r.Case != want[i] || r.N != 2 || r.Min > r.Value || r.Value > r.Max {
			t.Errorf("row %d: %+v, want case %q of %s in 2 rounds", i, r, want[i], suite)
		}
		timed := r.Unit == "ms" || r.Unit == "ns" || strings.HasPrefix(r.Case, "idle") && strings.HasSuffix(r.Case, "RSS")
		if timed && r.Min <= 0 {
			t.Errorf("%s: %v %s", r.Case, r.Min, r.Unit)
		}
	}
}
