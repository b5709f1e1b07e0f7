package programs

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/baseline"
	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/test/userns"
)

// commandVar, when set, makes the test's executable run one of bench's programs in place of the tests.
const commandVar = "BENCH_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandVar) != "" {
		run := load.Command
		if slices.Contains(Commands, os.Args[1]) {
			run = Command
		}
		if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	userns.Main(m)
}

func spawn(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), commandVar+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// web is a Topology whose HTTP service is the load generator's web server.
type web struct{ bench.Topology }

func (w web) Target(s bench.Service) (netip.AddrPort, bool) {
	t, ok := w.Topology.Target(bench.Load)
	switch s {
	case bench.HTTP:
		return netip.AddrPortFrom(t.Addr(), bench.HTTPPort), ok
	case bench.HTTPS, bench.DNS:
		return netip.AddrPort{}, false
	}
	return w.Topology.Target(s)
}

// Cases of every kind run in real namespaces, and each figure that they promise is there: the load generator's, and
// those of the programs that are installed.
func TestCasesRun(t *testing.T) {
	veth, err := baseline.Veth()
	if err != nil {
		t.Fatal(err)
	}
	defer veth.Close()
	const d = 50 * time.Millisecond
	cases := append(bench.UDPCases(d), bench.HTTPCases(d)[:4]...)
	if _, err := Find("iperf3"); err == nil {
		cases = append(cases, bench.IPerf3Cases(d)[2])
	}
	if _, err := Find("wrk"); err == nil {
		cases = append(cases, bench.WrkCases(d)[1])
	}
	rows, err := bench.Run(t.Context(), bench.Plan{
		Suite: "test", Topologies: []bench.Topology{web{veth}}, Cases: cases, Rounds: 1, Spawn: spawn,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, c := range cases {
		want += len(c.Metrics)
	}
	if len(rows) != want {
		t.Errorf("%d rows, want %d", len(rows), want)
	}
	for _, r := range rows {
		// Processor time is counted in hundredths of a second. No loss is a good value.
		if r.Value < 0 || r.Value == 0 && r.Unit != "%" && r.Case[max(0, len(r.Case)-4):] != " cpu" {
			t.Errorf("%+v", r)
		}
	}
}
