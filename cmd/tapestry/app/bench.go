package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/baseline"
	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/bench/programs"
	"tapestry.dev/tapestry/test/steps"
	"tapestry.dev/tapestry/test/userns"
)

// BenchCommand measures our paths beside baselines. Its processes inside of namespaces are this program, too: bench serve,
// stream, rr, ...
func BenchCommand() *cli.Command {
	var rounds int
	var length time.Duration
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure against the kernel bridge, raw wireguard-go and a null TAP loop, in one run",
		UsageText: "tapestry bench [options]\ntapestry bench serve|stream|rr|crr|udp|udprr|http|dns ...   the load generator by itself",
		Description: "Subjects and baselines are measured in turn (A B A B ...), and the ratio of the medians is printed: single figures of\n" +
			"a machine that does other things mean little. Needs no root.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Usage: "measure everything `N` times", Value: 5, Destination: &rounds},
			&cli.DurationFlag{Name: "time", Usage: "`LENGTH` of one measurement", Value: time.Second, Destination: &length},
			&cli.StringSliceFlag{Name: "subject", Usage: "measure only `NAME` (repeatable), as the table calls it"},
			&cli.StringSliceFlag{Name: "case", Usage: "measure only this `CASE` (repeatable)"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per row on its own line"},
			&cli.BoolFlag{Name: "csv", Usage: "print comma-separated values"},
		},
		Action: func(c *cli.Context) error {
			if !userns.Inside() {
				if code := userns.Run(userns.Options{Args: os.Args[1:]}); code != 0 {
					return cli.Exit("", code)
				}
				return nil
			}
			rows, err := runBench(c.Context, benchPlan{
				rounds: rounds, length: length, subjects: c.StringSlice("subject"), cases: c.StringSlice("case"),
			})
			switch {
			case err != nil:
				return err
			case c.Bool("json"):
				return bench.WriteJSON(os.Stdout, rows)
			case c.Bool("csv"):
				return bench.WriteCSV(os.Stdout, rows)
			}
			return bench.WriteTable(os.Stdout, rows)
		},
		Subcommands: loadGenerator(),
	}
}

// loadGenerator passes command lines of bench's own processes on to bench.
func loadGenerator() []*cli.Command {
	var out []*cli.Command
	for _, name := range slices.Concat(load.Commands, baseline.Commands, programs.Commands) {
		run := load.Command
		switch {
		case slices.Contains(baseline.Commands, name):
			run = baseline.Command
		case slices.Contains(programs.Commands, name):
			run = programs.Command
		}
		out = append(out, &cli.Command{
			Name: name, Hidden: true, SkipFlagParsing: true, HideHelp: true,
			Action: func(c *cli.Context) error {
				err := run(c.Context, append([]string{name}, c.Args().Slice()...), os.Stdin, os.Stdout)
				if err == nil {
					os.Exit(0) // a baseline may have left threads in system calls
				}
				return err
			},
		})
	}
	return out
}

// benchPlan is what the flags ask for. Empty lists mean everything.
type benchPlan struct {
	rounds          int
	length          time.Duration
	subjects, cases []string
}

func runBench(ctx context.Context, p benchPlan) (rows []bench.Row, err error) {
	lab, err := steps.UpBench(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Down(context.WithoutCancel(ctx))) }()
	topologies, closeAll, err := baselines()
	if err != nil {
		return nil, err
	}
	defer closeAll()
	plan := bench.Plan{
		Suite: "pod", Rounds: p.rounds, Progress: progress(),
		Topologies: append(lab.Subjects(), topologies...), Cases: bench.TCPCases(p.length),
		Baselines: map[string][]string{
			steps.SameNode:       {"null-loop", "kernel-bridge"},
			steps.ClusterIP:      {steps.SameNode},
			steps.AcrossNodes:    {"wireguard-go"},
			steps.AcrossServices: {steps.AcrossNodes},
			"null-loop":          {"kernel-bridge"},
		},
	}
	if plan.Topologies, err = choose("subject", p.subjects, plan.Topologies, bench.Topology.Name); err != nil {
		return nil, err
	}
	if plan.Cases, err = choose("case", p.cases, plan.Cases, func(c bench.Case) string { return c.Name }); err != nil {
		return nil, err
	}
	for subject, names := range plan.Baselines {
		plan.Baselines[subject] = slices.DeleteFunc(names, func(name string) bool {
			return !slices.ContainsFunc(plan.Topologies, func(t bench.Topology) bool { return t.Name() == name })
		})
	}
	return bench.Run(ctx, plan)
}

// choose keeps those of all that are wanted by name; without wishes, all.
func choose[T any](what string, wanted []string, all []T, name func(T) string) ([]T, error) {
	if len(wanted) == 0 {
		return all, nil
	}
	var out []T
	var names []string
	for _, t := range all {
		names = append(names, name(t))
		if slices.Contains(wanted, name(t)) {
			out = append(out, t)
		}
	}
	for _, w := range wanted {
		if !slices.Contains(names, w) {
			return nil, fmt.Errorf("--%s %q: expected one of %s", what, w, strings.Join(names, ", "))
		}
	}
	return out, nil
}

// baselines makes what we are compared with.
func baselines() (out []bench.Topology, closeAll func(), err error) {
	closeAll = func() {
		for _, t := range out {
			_ = t.Close()
		}
	}
	for _, make := range []func() (bench.Topology, error){
		func() (bench.Topology, error) { return baseline.KernelBridge(0) },
		func() (bench.Topology, error) { return baseline.NullLoop(process.Self, 0) },
		func() (bench.Topology, error) { return baseline.WireGuard(process.Self, 0) },
	} {
		t, err := make()
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		out = append(out, t)
	}
	return out, closeAll, nil
}

// progress shows on a terminal what is being measured.
func progress() func(done, all int, topology, name string) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	return func(done, all int, topology, name string) {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%d/%d %s %s", done, all, topology, name)
		if done == all {
			fmt.Fprint(os.Stderr, "\r\x1b[K")
		}
	}
}
