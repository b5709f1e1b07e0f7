package connectivity

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/kube/stage"
)

// Command is "tapestry connectivity-test".
func Command() *cli.Command {
	var o stage.Options
	var format, outside string
	var limit time.Duration
	var keep bool
	return &cli.Command{
		Name:  name,
		Usage: "try every way through a cluster's network, from pods made for the test",
		Description: "Makes a namespace with four pods and three Services on two nodes. From pods and from a node it tries pods, Services, node\n" +
			"ports, DNS and the outside, in every address family of the cluster. Then it removes everything. Exits with 1 if anything\n" +
			"failed.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kubeconfig", Usage: "`FILE` with the cluster and credentials that may make namespaces", DefaultText: "$KUBECONFIG, ~/.kube/config, or the pod's", Destination: &o.Kubeconfig},
			&cli.StringFlag{Name: "image", Usage: "`IMAGE` with this program", DefaultText: "the agents'", Destination: &o.Image},
			&cli.StringFlag{Name: "program", Usage: "`PATH` of this program in it", DefaultText: "as the agents have it, or /tapestry", Destination: &o.Program},
			&cli.StringFlag{Name: "outside", Usage: "`HOST:PORT` of an HTTP server outside the cluster that is to be tried too", Destination: &outside},
			&cli.DurationFlag{Name: "timeout", Usage: "give up after `TIME`", Value: 5 * time.Minute, Destination: &limit},
			&cli.BoolFlag{Name: "keep", Usage: "do not remove the namespace", Destination: &keep},
			output.Flag(&format),
		},
		Subcommands: inside(),
		Action: func(ctx *cli.Context) error {
			o.Say = func(s string) { output.Line(ctx.App.ErrWriter, s) }
			run, cancel := context.WithTimeout(ctx.Context, limit)
			defer cancel()
			results, err := test(run, o, outside, keep)
			if err != nil {
				return err
			}
			if err := output.Write(ctx.App.Writer, format, results, func(w io.Writer) error { return printResults(w, results) }); err != nil {
				return err
			}
			if Failed(results) > 0 {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

func test(ctx context.Context, o stage.Options, outside string, keep bool) (results []Result, err error) {
	s, err := stage.Setup(ctx, o)
	if err != nil {
		return nil, err
	}
	if !keep {
		defer func() {
			if closeErr := s.Close(context.WithoutCancel(ctx)); err == nil {
				err = closeErr
			}
		}()
	}
	if len(s.Nodes) == 1 {
		o.Say("only one node takes pods, so no way between nodes is tried")
	}
	return Run(ctx, s.Exec, Plan(s, outside)), nil
}

func printResults(w io.Writer, results []Result) error {
	t := output.Columns(w)
	t.Row("WAY", "FROM", "TO", "RESULT")
	for _, r := range results {
		result := "ok"
		switch {
		case r.Problem != "":
			result = "FAILED: " + r.Problem
		case r.Tries > 1:
			result = fmt.Sprintf("ok at try %d", r.Tries)
		}
		t.Row(r.Group, r.From, r.Name, result)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	failed := Failed(results)
	_, err := fmt.Fprintf(w, "\n%d of %d ways work\n", len(results)-failed, len(results))
	return err
}
