package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/baseline"
	"tapestry.dev/tapestry/bench/chart"
	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/bench/programs"
	"tapestry.dev/tapestry/bench/suite"
	"tapestry.dev/tapestry/test/product"
	"tapestry.dev/tapestry/test/userns"
)

// benchCommand is "tapestry-lab bench". It measures Tapestry beside baselines. Its processes inside namespaces are
// this program too: bench serve, stream, rr, ...
func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure against the kernel, raw wireguard-go and other programs, in one run",
		UsageText: "tapestry-lab bench [SUITE...] [options]\n" +
			"tapestry-lab bench serve|stream|rr|crr|udp|udprr|http|dns ...   the load generator by itself",
		Description: "Measures subjects and baselines in turn (A B A B ...) and prints the ratio of the medians, since single figures mean\n" +
			"little on a machine that does other things. Needs no root. Names baselines that are not installed and leaves them out;\n" +
			"it installs nothing.\n\n" + describeSuites(suite.All()),
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Usage: "measure everything `N` times", Value: bench.DefaultRounds},
			&cli.DurationFlag{Name: "time", Usage: "`LENGTH` of one measurement", DefaultText: "the suite's"},
			&cli.StringSliceFlag{Name: "subject", Usage: "measure only `NAME` (repeatable), as the table calls it"},
			&cli.StringSliceFlag{Name: "case", Usage: "measure only this `CASE` (repeatable)"},
			&cli.BoolFlag{Name: "programs", Usage: "measure with iperf3 and wrk, too, where they are installed"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per row on its own line"},
			&cli.BoolFlag{Name: "csv", Usage: "print comma-separated values"},
			&cli.StringFlag{Name: "chart", Usage: "draw each suite into `DIR`, as SUITE.svg"},
			&cli.StringFlag{Name: "chart-format", Usage: "`FORMAT` of charts: svg, png or both", Value: "svg"},
			productFlag(),
			&cli.BoolFlag{Name: "list", Usage: "print the suites, their subjects and cases and what is not installed; measure nothing"},
		},
		Action:      runBench,
		Subcommands: loadGenerator(),
	}
}

func runBench(c *cli.Context) error {
	if args := c.Args().Slice(); len(args) > 1 && slices.Contains(load.Commands, args[0]) && strings.Contains(args[1], ":") {
		return generateLoad(c.Context, args)
	}
	names, err := interspersed(c, leading(c.Args().Slice()))
	if err != nil {
		return err
	}
	wanted := suite.Selection{Suites: names, Subjects: c.StringSlice("subject"), Cases: c.StringSlice("case"), Programs: c.Bool("programs")}
	suites, err := wanted.Select(suite.All())
	if err != nil {
		return err
	}
	if c.Int("rounds") < 1 || c.Duration("time") < 0 {
		return errors.New("expected --rounds of at least 1 and a positive --time")
	}
	formats, err := chartFormats(c.String("chart-format"))
	if err != nil {
		return err
	}
	// All labs of this run use this executable, in whatever process they start.
	executable, err := product.Find(c.String("tapestry"))
	if err != nil {
		return err
	}
	if err := os.Setenv(product.Variable, executable); err != nil {
		return err
	}
	if !userns.Inside() {
		if code := userns.Run(userns.Options{Args: os.Args[1:]}); code != 0 {
			return cli.Exit("", code)
		}
		return nil
	}
	if c.Bool("list") {
		return suite.List(os.Stdout, suites, process.Self)
	}
	view := &benchView{errors: os.Stderr, terminal: term.IsTerminal(int(os.Stderr.Fd()))}
	o := suite.Options{
		Rounds: c.Int("rounds"), Time: c.Duration("time"), Required: slices.Concat(wanted.Subjects, wanted.Cases),
		Notice: view.notice, Progress: view.progress,
	}
	machine := bench.ThisMachine()
	if c.Bool("json") || c.Bool("csv") { // the table shows the machine in its header
		view.say(machine)
	}
	view.begin(suites, o)
	rows, err := suite.Run(c.Context, suites, o)
	view.end()
	err = errors.Join(err, printRows(c, machine, rows))
	if dir := c.String("chart"); dir != "" {
		err = errors.Join(err, drawCharts(dir, formats, machine, rows))
	}
	return err
}

// chartFormats returns the formats that a value of --chart-format means.
func chartFormats(name string) ([]string, error) {
	switch {
	case name == "both":
		return chart.Formats, nil
	case slices.Contains(chart.Formats, name):
		return []string{name}, nil
	}
	return nil, fmt.Errorf("--chart-format %q: expected one of %s, both", name, strings.Join(chart.Formats, ", "))
}

// leading returns the number of arguments before the first flag.
func leading(args []string) int {
	if i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }); i >= 0 {
		return i
	}
	return len(args)
}

func describeSuites(all []suite.Suite) string {
	var b strings.Builder
	b.WriteString("Suites, all of them by default:")
	for _, s := range all {
		fmt.Fprintf(&b, "\n  %-12s %s", s.Name, s.About)
	}
	return b.String()
}

// printRows prints the rows that there are, also if the run failed later.
func printRows(c *cli.Context, machine bench.Machine, rows []bench.Row) error {
	switch {
	case len(rows) == 0:
		return nil
	case c.Bool("json"):
		return bench.WriteJSON(os.Stdout, rows)
	case c.Bool("csv"):
		return bench.WriteCSV(os.Stdout, rows)
	}
	fmt.Println(machine)
	return bench.WriteTable(os.Stdout, rows)
}

// drawCharts writes one file for each suite and format.
func drawCharts(dir string, formats []string, machine bench.Machine, rows []bench.Row) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	ours, others := suite.Names(suite.All())
	colour := chart.Palette(ours, others)
	for _, s := range suite.All() {
		of := slices.DeleteFunc(slices.Clone(rows), func(r bench.Row) bool { return r.Suite != s.Name })
		if len(of) == 0 {
			continue
		}
		drawing := chart.Chart{Title: s.Name + ": " + s.About, About: machine.String(), Rows: of, Colour: colour}
		for _, format := range formats {
			var b bytes.Buffer
			if err := drawing.Write(&b, format); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, s.Name+"."+format), b.Bytes(), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// benchView shows people the progress of a run.
type benchView struct {
	errors   io.Writer
	terminal bool
}

func (v *benchView) say(what any) {
	if v.terminal {
		fmt.Fprintln(v.errors, what)
	}
}

func (v *benchView) begin(suites []suite.Suite, o suite.Options) {
	var all time.Duration
	for _, s := range suites {
		all += s.Estimate(o.Rounds, o.Time)
	}
	v.say(fmt.Sprintf("about %v; leave the machine alone meanwhile", all.Round(time.Second)))
}

func (v *benchView) notice(sentence string) {
	if v.terminal {
		fmt.Fprint(v.errors, clearLine)
	}
	fmt.Fprintln(v.errors, sentence)
}

func (v *benchView) end() {
	if v.terminal {
		fmt.Fprint(v.errors, clearLine)
	}
}

func (v *benchView) progress(suite string, done, all int, topology, name string) {
	if !v.terminal {
		return
	}
	if all == 0 { // nothing is counted yet
		fmt.Fprintf(v.errors, clearLine+"%s %s", suite, topology)
		return
	}
	fmt.Fprintf(v.errors, clearLine+"%s %d/%d %s %s", suite, done, all, topology, name)
}

// loadGenerator returns commands that run bench's own processes. It leaves out commands with the name of a suite,
// which the action of bench recognises by their server address.
func loadGenerator() []*cli.Command {
	var out []*cli.Command
	suites := suite.All()
	for _, name := range slices.Concat(load.Commands, baseline.Commands, programs.Commands) {
		if slices.ContainsFunc(suites, func(s suite.Suite) bool { return s.Name == name }) {
			continue
		}
		out = append(out, &cli.Command{
			Name: name, Hidden: true, SkipFlagParsing: true, HideHelp: true,
			Action: func(c *cli.Context) error {
				return generateLoad(c.Context, append([]string{name}, c.Args().Slice()...))
			},
		})
	}
	return out
}

func generateLoad(ctx context.Context, args []string) error {
	run := load.Command
	switch {
	case slices.Contains(baseline.Commands, args[0]):
		run = baseline.Command
	case slices.Contains(programs.Commands, args[0]):
		run = programs.Command
	}
	err := run(ctx, args, os.Stdin, os.Stdout)
	if err == nil {
		os.Exit(0) // a baseline may have left threads in system calls
	}
	return err
}
