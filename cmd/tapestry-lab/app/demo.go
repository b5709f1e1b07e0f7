package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"tapestry.dev/tapestry/test/steps"
	"tapestry.dev/tapestry/visible"
)

// demoCommand is "tapestry-lab demo", which shows all features on real packets.
func demoCommand() *cli.Command {
	var d demo
	var asJSON bool
	var name string
	return &cli.Command{
		Name:  "demo",
		Usage: "bring up a two-node cluster on this machine, show every feature on real packets, take it down",
		Description: "Needs /dev/net/tun and no root. Two nodes with an agent process each, pods in namespaces of their own, a kernel\n" +
			"bridge as the network between the nodes. Every step sends real packets and checks what arrived. The exit status is\n" +
			"1 when a step failed.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per step on its own line: name, ok, detail, ms", Destination: &asJSON},
			&cli.BoolFlag{Name: "keep", Usage: "leave the cluster up and print what to try next", Destination: &d.keep},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the lab", Value: "demo", Destination: &name},
			&cli.StringSliceFlag{Name: "step", Usage: "play only this `STEP` (repeatable)"},
			productFlag(),
			&cli.StringFlag{Name: "svg", Usage: "also draw the result into `FILE`"},
			&cli.BoolFlag{Name: "no-bench", Usage: "leave out the table of throughput and latency at the end"},
		},
		Action: func(c *cli.Context) error {
			d.view = &plainView{out: os.Stdout}
			switch {
			case asJSON:
				d.view = &jsonView{json.NewEncoder(os.Stdout)}
			case term.IsTerminal(int(os.Stdout.Fd())):
				d.view = &terminalView{out: os.Stdout}
			}
			d.product, d.only, d.bench = c.String("tapestry"), c.StringSlice("step"), !c.Bool("no-bench")
			if err := d.check(); err != nil {
				return err
			}
			file := c.String("svg")
			if file == "" {
				return d.run(c.Context, name)
			}
			p := newPictureView(d.view, file)
			d.view = p
			return errors.Join(d.run(c.Context, name), p.draw())
		},
	}
}

// result is the outcome of one step, and one line of --json.
type result struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Millis int64  `json:"ms"`
}

// view shows the demo while it runs.
type view interface {
	begin(name, title string)
	end(result)
	table(rows [][]string)
	say(text string)
}

type demo struct {
	view    view
	keep    bool
	bench   bool
	only    []string
	product string // the executable tapestry; "": the one beside this program
}

// stepTime is how long a step may take before it counts as failed.
const stepTime = 30 * time.Second

func (d *demo) run(ctx context.Context, name string) (err error) {
	start := time.Now()
	dir, err := os.MkdirTemp("", "tapestry-demo-")
	if err != nil {
		return err
	}
	if !d.keep {
		defer os.RemoveAll(dir)
	}
	var cluster *steps.Cluster
	if !d.play(ctx, "up", "bring up two nodes, their pods and Services", func(ctx context.Context) (string, error) {
		var err error
		if cluster, err = steps.Up(ctx, steps.Options{Name: name, Dir: dir, Product: d.product, Detach: d.keep}); err != nil {
			return "", err
		}
		st, err := cluster.Status(ctx)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d nodes, %d pods, %d Services", len(st.Nodes), len(st.Pods), len(st.Services)), nil
	}) {
		if cluster != nil {
			err = cluster.Down(context.WithoutCancel(ctx))
		}
		return errors.Join(cli.Exit("", 1), err)
	}
	if !d.keep {
		defer func() {
			if derr := cluster.Down(context.WithoutCancel(ctx)); derr != nil {
				err = errors.Join(err, derr)
			}
		}()
	}
	failed := 0
	for _, s := range steps.All() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !d.wanted(s.Name) {
			continue
		}
		if !d.play(ctx, s.Name, s.Title, func(ctx context.Context) (string, error) { return s.Run(ctx, cluster) }) {
			failed++
		}
	}
	if d.bench && len(d.only) == 0 && failed == 0 {
		var rows [][]string
		if d.play(ctx, "bench", "throughput and latency, a second each", func(ctx context.Context) (detail string, err error) {
			rows, err = cluster.Measure(ctx)
			return "a first look; 'tapestry-lab bench' compares with the kernel and with raw wireguard-go", err
		}) {
			d.view.table(rows)
		} else {
			failed++
		}
	}
	d.closing(cluster, failed, time.Since(start))
	if failed > 0 {
		return cli.Exit("", 1)
	}
	return nil
}

// check returns an error if a step does not exist.
func (d *demo) check() error {
	var names []string
	for _, s := range steps.All() {
		names = append(names, s.Name)
	}
	for _, o := range d.only {
		if !slices.Contains(names, o) {
			return fmt.Errorf("--step %q: expected one of %s", o, strings.Join(names, ", "))
		}
	}
	return nil
}

func (d *demo) wanted(name string) bool {
	return len(d.only) == 0 || slices.Contains(d.only, name)
}

// play runs one step and shows it.
func (d *demo) play(ctx context.Context, name, title string, f func(context.Context) (string, error)) bool {
	d.view.begin(name, title)
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	start := time.Now()
	detail, err := f(ctx)
	if err != nil {
		detail = err.Error()
	}
	d.view.end(result{name, err == nil, detail, time.Since(start).Milliseconds()})
	return err == nil
}

func (d *demo) closing(c *steps.Cluster, failed int, took time.Duration) {
	if failed > 0 {
		d.view.say(fmt.Sprintf("%d steps failed after %.1f s.", failed, took.Seconds()))
	} else {
		d.view.say(fmt.Sprintf("All of it worked, in %.1f s.", took.Seconds()))
	}
	if !d.keep {
		return
	}
	d.view.say(fmt.Sprintf(`The cluster is still up. Try:
  %[1]s ps --name %[2]s
  %[1]s exec --name %[2]s client -- curl -s http://web/
  %[1]s outside --name %[2]s -- curl -s -H 'Host: shop.example' http://172.31.0.11/far
  %[1]s impair --name %[2]s node-1 node-2 --loss 1%% --delay 5ms
  edit %[3]s while it runs
  %[1]s down --name %[2]s`, os.Args[0], c.Name, c.File()))
}

// plainView prints one line per step.
type plainView struct{ out io.Writer }

func (v *plainView) begin(string, string) {}

func (v *plainView) end(r result) {
	mark := "ok  "
	if !r.OK {
		mark = "FAIL"
	}
	fmt.Fprintf(v.out, "%s %-16s %6d ms  %s\n", mark, r.Name, r.Millis, visible.Text(r.Detail))
}

func (v *plainView) table(rows [][]string) { printTable(v.out, rows) }
func (v *plainView) say(text string)       { fmt.Fprintln(v.out, text) }

// terminalView shows the running step and colours the results.
type terminalView struct {
	out  io.Writer
	done int
}

const (
	green     = "\x1b[32m"
	red       = "\x1b[31m"
	dim       = "\x1b[2m"
	plain     = "\x1b[0m"
	clearLine = "\r\x1b[K"
)

func (v *terminalView) begin(name, title string) {
	fmt.Fprintf(v.out, "%s%s… %2d  %-16s%s %s", clearLine, dim, v.done+1, name, plain, title)
}

func (v *terminalView) end(r result) {
	v.done++
	mark := green + "✔" + plain
	if !r.OK {
		mark = red + "✘" + plain
	}
	fmt.Fprintf(v.out, "%s%s %2d  %-16s %s%6d ms%s  %s\n", clearLine, mark, v.done, r.Name, dim, r.Millis, plain, visible.Text(r.Detail))
}

func (v *terminalView) table(rows [][]string) { printTable(v.out, rows) }
func (v *terminalView) say(text string)       { fmt.Fprintln(v.out, "\n"+text) }

// jsonView prints one object per step and nothing else.
type jsonView struct{ enc *json.Encoder }

func (v *jsonView) begin(string, string) {}
func (v *jsonView) end(r result)         { _ = v.enc.Encode(r) } // after an error nobody reads any more
func (v *jsonView) table([][]string)     {}
func (v *jsonView) say(string)           {}

func printTable(out io.Writer, rows [][]string) {
	widths := map[int]int{}
	for _, r := range rows {
		for i, cell := range r {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	fmt.Fprintln(out)
	for _, r := range rows {
		for i, cell := range r {
			fmt.Fprintf(out, "  %-*s", widths[i], cell)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintln(out)
}
