package baseline

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
)

// baselines returns all baselines by name.
func baselines() map[string]func() (bench.Topology, error) {
	return map[string]func() (bench.Topology, error){
		"kernel-bridge":           func() (bench.Topology, error) { return KernelBridge() },
		"veth":                    func() (bench.Topology, error) { return Veth() },
		"vxlan":                   func() (bench.Topology, error) { return VXLAN() },
		"null-loop":               func() (bench.Topology, error) { return NullLoop(spawn) },
		"wireguard-go":            func() (bench.Topology, error) { return WireGuard(spawn) },
		"kube-proxy-iptables-200": func() (bench.Topology, error) { return ServiceNAT(IPTables, 200) },
		"kube-proxy-nftables-200": func() (bench.Topology, error) { return ServiceNAT(NFTables, 200) },
		"pasta-egress":            func() (bench.Topology, error) { return Pasta(Egress) },
		"pasta-port":              func() (bench.Topology, error) { return Pasta(Port) },
		"slirp4netns-egress":      func() (bench.Topology, error) { return Slirp4netns(Egress) },
		"slirp4netns-port":        func() (bench.Topology, error) { return Slirp4netns(Port) },
		"direct":                  func() (bench.Topology, error) { return Direct() },
		"nginx":                   func() (bench.Topology, error) { return Nginx() },
		"haproxy":                 func() (bench.Topology, error) { return HAProxy() },
		"caddy":                   func() (bench.Topology, error) { return Caddy() },
		"coredns":                 func() (bench.Topology, error) { return CoreDNS(1000) },
	}
}

// missing lists the programs behind baselines, and the command that installs each.
var missing = map[string]process.MissingError{
	"kube-proxy-iptables-200": {Program: "iptables-restore", Package: "apt-get install iptables"},
	"kube-proxy-nftables-200": {Program: "nft", Package: "apt-get install nftables"},
	"pasta-egress":            {Program: "pasta", Package: "apt-get install passt"},
	"pasta-port":              {Program: "pasta", Package: "apt-get install passt"},
	"slirp4netns-egress":      {Program: "slirp4netns", Package: "apt-get install slirp4netns"},
	"slirp4netns-port":        {Program: "slirp4netns", Package: "apt-get install slirp4netns"},
	"nginx":                   {Program: "nginx", Package: "apt-get install nginx-light"},
	"haproxy":                 {Program: "haproxy", Package: "apt-get install haproxy"},
	"caddy":                   {Program: "caddy", Package: "make peers"},
	"coredns":                 {Program: "coredns", Package: "make peers"},
}

// made returns the baseline, or nil when its program is missing. The error must then name the program and how to
// install it.
func made(t *testing.T, name string) bench.Topology {
	t.Helper()
	topology, err := baselines()[name]()
	if m, ok := errors.AsType[*process.MissingError](err); ok {
		if *m != missing[name] || err.Error() != m.Program+" is not installed: "+m.Package {
			t.Errorf("%s: got %q, want %+v", name, err, missing[name])
		}
		return nil
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return topology
}

// Bytes flow through each baseline, in real namespaces and between real processes. The test does not judge the figures.
func TestBaselines(t *testing.T) {
	const length = 50 * time.Millisecond
	cases := slices.Concat(bench.TCPCases(length), bench.UDPCases(length), bench.HTTPCases(length), bench.DNSCases(length))
	for name := range baselines() {
		t.Run(name, func(t *testing.T) {
			rows, want, err := measured(t, name, cases)
			// On a busy machine slirp4netns sometimes does not pass the end of a connection on, and pasta has stopped
			// answering for good. Another one is begun then.
			if _, others := missing[name]; err != nil && others {
				t.Logf("once more, after: %v", err)
				rows, want, err = measured(t, name, cases)
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) != want {
				t.Errorf("%d rows, want %d", len(rows), want)
			}
			for _, r := range rows {
				// Processor time is counted in hundredths of a second. A short measurement may take none.
				mayBeZero := strings.HasSuffix(r.Case, " cpu") || strings.HasSuffix(r.Case, " loss")
				if r.Value <= 0 && !mayBeZero || r.N != 1 {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

// measured makes the baseline, and returns its rows, and how many its services should give. Without its program there
// are none.
func measured(t *testing.T, name string, cases []bench.Case) (rows []bench.Row, want int, err error) {
	t.Helper()
	topology := made(t, name)
	if topology == nil {
		return nil, 0, nil
	}
	defer func() {
		if err := topology.Close(); err != nil {
			t.Error(err)
		}
	}()
	if topology.Name() != name {
		t.Errorf("it is called %s", topology.Name())
	}
	for _, c := range cases {
		if _, ok := topology.Target(c.Service); ok {
			want += len(c.Metrics)
		}
	}
	plan := bench.Plan{Suite: "test", Topologies: []bench.Topology{topology}, Cases: cases, Rounds: 1, Spawn: spawn}
	rows, err = bench.Run(t.Context(), plan)
	return rows, want, err
}

// Two topologies are measured at once, like in a real run, with a ratio. The order of measurements is A B A B.
func TestInterleaved(t *testing.T) {
	bridge, err := KernelBridge()
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	loop, err := NullLoop(spawn)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	var order []string
	rows, err := bench.Run(t.Context(), bench.Plan{
		Topologies: []bench.Topology{bridge, loop},
		Cases:      bench.TCPCases(20 * time.Millisecond)[3:4],
		Baselines:  map[string][]string{"null-loop": {"kernel-bridge"}},
		Rounds:     2,
		Spawn:      spawn,
		Progress: func(done, all int, topology, _ string) {
			if done < all {
				order = append(order, topology)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(order, " "), strings.Repeat(" kernel-bridge null-loop", 3)[1:]; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if r := rows[1]; r.Subject != "null-loop" || r.Ratio <= 0 || r.BaselineValue != rows[0].Value || r.N != 2 {
		t.Errorf("%+v", r)
	}
}

// A failure in a child becomes the run's error, with what the child wrote.
func TestRunSaysWhatFailed(t *testing.T) {
	bridge, err := KernelBridge()
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	_, err = bench.Run(t.Context(), bench.Plan{
		Topologies: []bench.Topology{wrongAddr{bridge}},
		Cases:      bench.TCPCases(20 * time.Millisecond)[3:4],
		Rounds:     1,
		Spawn:      spawn,
	})
	if err == nil || !strings.Contains(err.Error(), "kernel-bridge: tcp rr") || !strings.Contains(err.Error(), "network is unreachable") {
		t.Errorf("got %v", err)
	}
	if _, err := NullLoop(func(...string) *exec.Cmd { return spawn("sing") }); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("a loop that does not start: got %v", err)
	}
}

type wrongAddr struct{ bench.Topology }

func (wrongAddr) Target(bench.Service) (netip.AddrPort, bool) {
	return netip.MustParseAddrPort("192.0.2.1:5201"), true
}

func TestRunEndsWithContext(t *testing.T) {
	bridge, err := KernelBridge()
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	ctx, cancel := context.WithCancel(t.Context())
	_, err = bench.Run(ctx, bench.Plan{
		Topologies: []bench.Topology{bridge},
		Cases:      bench.TCPCases(time.Hour)[3:4],
		Rounds:     1,
		Spawn:      spawn,
		Progress: func(done, _ int, _, _ string) {
			if done == 1 { // the warm-up is over; the measurement of an hour begins
				time.AfterFunc(50*time.Millisecond, cancel)
			}
		},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// Close leaves nothing behind: no processes, no files, and no namespaces.
func TestCloseLeavesNothing(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	before := descriptors(t)
	for name := range baselines() {
		topology := made(t, name)
		if topology == nil {
			continue
		}
		if err := topology.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := topology.Close(); err != nil {
			t.Errorf("%s, again: %v", name, err)
		}
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
	if files, err := os.ReadDir(temp); err != nil || len(files) > 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
	if err := tap.DeleteLink(nil, "eth0"); err == nil {
		t.Error("an interface was left in the caller's namespace")
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A measurement that fails can be left out. The others have all their rounds.
func TestRunGoesOn(t *testing.T) {
	bridge, err := KernelBridge()
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	loop, err := NullLoop(spawn)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	var failed []string
	rows, err := bench.Run(t.Context(), bench.Plan{
		Topologies: []bench.Topology{wrongAddr{bridge}, loop},
		Cases:      bench.TCPCases(20 * time.Millisecond)[3:4],
		Baselines:  map[string][]string{"null-loop": {"kernel-bridge"}},
		Rounds:     2,
		Spawn:      spawn,
		Failed: func(topology string, err error) bool {
			failed = append(failed, topology)
			return strings.Contains(err.Error(), "network is unreachable")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(failed, " "); got != "kernel-bridge kernel-bridge kernel-bridge" {
		t.Errorf("failed: %s", got)
	}
	for _, r := range rows {
		if r.Subject != "null-loop" || r.N != 2 || r.Baseline != "" {
			t.Errorf("%+v", r)
		}
	}
	if len(rows) == 0 {
		t.Error("no rows")
	}
}
