// Program attacks attacks a lab with real agents, and prints what a well-behaved client saw before, during and after
// each attack, and what the attacked agent used. docs/attacks.md is the record of a run; `make attacks` makes one.
//
// Everything happens in namespaces of the lab, and each attack is over after a few seconds. The program is what runs in
// these namespaces, too: `attacks run NAME ARGUMENT...` is one of the programs in programs.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry-lab/app"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// Times of one attack.
const (
	calm     = 3 * time.Second  // measured before and after
	lasts    = 10 * time.Second // the attack
	recovery = time.Second      // between the end of the attack and the last measurement
	patience = 3 * time.Minute  // for the lab to be ready
)

func main() {
	lab.Maybe()
	if len(os.Args) > 2 && os.Args[1] == "run" {
		fail(runProgram(os.Args[2], os.Args[3:]))
		return
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "only=") {
		os.Exit(app.Run(os.Args)) // the lab runs tapestry-lab's own programs, as its server in pods
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var only []string
	if len(os.Args) > 1 {
		only = strings.Split(strings.TrimPrefix(os.Args[1], "only="), ",")
	}
	for _, name := range only {
		if !slices.ContainsFunc(attacks, func(a attack) bool { return a.name == name }) {
			fail(fmt.Errorf("there is no attack %q", name))
		}
	}
	fail(attackAll(ctx, only))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		os.Exit(1)
	}
}

// scene is a lab that is attacked.
type scene struct {
	*lab.Client
	exe string
}

// attackAll makes a lab for each attack, so that none is measured in what another left, and prints the table.
func attackAll(ctx context.Context, only []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "attacks-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	os.Setenv("XDG_RUNTIME_DIR", dir) // "all labs" are those of this program
	fmt.Printf("%d processors, %s. Load average before: %s\n\n", runtime.NumCPU(), runtime.Version(), loadAverage())
	fmt.Println("| attack | done | before | during | one second after | at a plain server | agent's memory, MB | descriptors | processor, s |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	var errs []error
	for _, a := range attacks {
		if len(only) > 0 && !slices.Contains(only, a.name) {
			continue
		}
		row, err := attackOnce(ctx, exe, dir, a)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
			row = "| failed: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Printf("| %s: %s %s |\n", a.name, a.what, row)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Printf("\nLoad average after: %s\n", loadAverage())
	return errors.Join(errs...)
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func attackOnce(ctx context.Context, exe, dir string, a attack) (row string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience+2*time.Minute)
	defer cancel()
	base, err := baseYAML(exe)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "attack.yaml")
	if err := os.WriteFile(file, []byte(base), 0o600); err != nil {
		return "", err
	}
	s := &scene{exe: exe}
	if s.Client, err = lab.Up(ctx, lab.Options{Name: "attack", Files: []string{file}, LoadBalancers: []netip.Prefix{pool}}); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Down(context.Background())) }()
	if err := s.Wait(ctx, patience); err != nil {
		return "", err
	}
	if err := s.route(ctx); err != nil {
		return "", err
	}
	return s.measure(ctx, a)
}

// route has the network outside lead load balancers' addresses to the attacked node, and the attackers' many addresses
// be the client's.
func (s *scene) route(ctx context.Context) error {
	for _, argv := range [][]string{
		{"ip", "route", "replace", pool.String(), "via", nodeAddr},
		{"ip", "route", "replace", "local", manyAddrs, "dev", "lo"},
	} {
		if _, text, code, err := s.Output(ctx, lab.Outside(), argv...); err != nil || code != 0 {
			return fmt.Errorf("%v: exit status %d, %w: %s", argv, code, err, text)
		}
	}
	return nil
}

// measure carries an attack out and returns the rest of its row.
func (s *scene) measure(ctx context.Context, a attack) (string, error) {
	before, err := s.visit(ctx, a, calm)
	if err != nil {
		return "", err
	}
	status, err := s.Status(ctx)
	if err != nil {
		return "", err
	}
	pid := status.Nodes[slices.IndexFunc(status.Nodes, func(n lab.NodeStatus) bool { return n.Name == victimNode })].PID
	var wg sync.WaitGroup
	var used usage
	var during seen
	var done string
	errs := make([]error, 3)
	wg.Go(func() {
		errs[0] = s.run(ctx, lab.Node(victimNode), &used, "watch", fmt.Sprint(pid), (lasts + recovery).String())
	})
	wg.Go(func() { done, errs[1] = s.carryOut(ctx, a) })
	wg.Go(func() { during, errs[2] = s.visit(ctx, a, lasts) })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	wait(ctx, recovery)
	after, err := s.visit(ctx, a, calm)
	if err != nil {
		return "", err
	}
	beside := "-"
	if a.plain {
		if beside, err = s.attackPlain(ctx, a, during); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s", done, before, during, after, beside, used), nil
}

// attackPlain has the attackers ask a plain server of the same node in the agent's place, and returns what the
// well-behaved client saw meanwhile, and how much longer its p99 was during the attack: what the agent costs, apart
// from what attackers cost everybody on their machine.
func (s *scene) attackPlain(ctx context.Context, a attack, during seen) (string, error) {
	var wg sync.WaitGroup
	var plain seen
	errs := make([]error, 3)
	wg.Go(func() {
		errs[0] = s.run(ctx, lab.Node(victimNode), new(any), "backend", plainPort, (lasts + recovery).String())
	})
	wg.Go(func() {
		program := slices.Clone(a.program)
		if program[1] = plainPort; strings.Contains(a.program[1], ":") {
			program[1] = net.JoinHostPort(nodeAddr, plainPort)
		}
		errs[1] = s.run(ctx, lab.Outside(), new(int), append(program, lasts.String())...)
	})
	wg.Go(func() { plain, errs[2] = s.visit(ctx, a, lasts) })
	wg.Wait()
	return fmt.Sprintf("%s (x%.1f)", plain, during.P99/plain.P99), errors.Join(errs...)
}

// carryOut attacks for as long as an attack lasts: by objects, by a program, or by both. It returns what was done.
func (s *scene) carryOut(ctx context.Context, a attack) (done string, err error) {
	ends := time.Now().Add(lasts)
	if a.objects != nil {
		took, err := s.apply(ctx, a.objects())
		defer os.Remove(s.objects())
		if err != nil {
			return "", err
		}
		done = fmt.Sprintf("in force after %.1f s", took.Seconds())
	}
	if a.program == nil {
		wait(ctx, time.Until(ends))
		return cmp.Or(done, "-"), nil
	}
	times := 0
	err = s.run(ctx, a.from, &times, append(slices.Clone(a.program), time.Until(ends).String())...)
	return fmt.Sprint(times), err
}

// objects is a file of objects for the agents alone. The lab itself would refuse them, as no API server does.
func (s *scene) objects() string { return filepath.Join(rpc.ObjectsDir(s.Dir), "attack.yaml") }

// apply gives the agents objects, and returns how long it took until they were in force on the attacked node.
func (s *scene) apply(ctx context.Context, yaml string) (time.Duration, error) {
	api := &localapi.Client{Path: filepath.Join(rpc.NodeDir(s.Dir, victimNode), "api.sock")}
	begin := time.Now()
	if err := os.WriteFile(s.objects(), []byte(yaml+marker), 0o600); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		rows, err := localapi.Frontends.Ask(ctx, api)
		if err != nil {
			return 0, err
		}
		if slices.ContainsFunc(rows, func(f localapi.Frontend) bool { return f.Service == markerName }) {
			return time.Since(begin), nil
		}
		wait(ctx, 20*time.Millisecond)
	}
	return 0, ctx.Err()
}

// visit plays the well-behaved client.
func (s *scene) visit(ctx context.Context, a attack, d time.Duration) (out seen, err error) {
	scheme := "http"
	if a.tls {
		scheme = "https"
	}
	return out, s.run(ctx, lab.Outside(), &out, "visit", scheme, d.String())
}

// run runs one of programs and reads the JSON that it prints.
func (s *scene) run(ctx context.Context, where lab.Target, out any, args ...string) error {
	stdout, stderr, code, err := s.Output(ctx, where, append([]string{s.exe, "run"}, args...)...)
	if err != nil || code != 0 {
		return fmt.Errorf("%v: exit status %d, %w: %s", args, code, err, stderr)
	}
	return json.Unmarshal([]byte(stdout), out)
}
