// Package policy asks the agent of a node about policies: how they fare, and why one end may reach another, or may not.
package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/cmd/tapestry/status"
	"tapestry.dev/tapestry/localapi"
)

// askTime is how long the agent may take to answer.
const askTime = 10 * time.Second

// Command is "tapestry policy".
func Command() *cli.Command {
	return &cli.Command{
		Name:        "policy",
		Usage:       "show policies as this node judges by them, and explain what they say",
		Subcommands: []*cli.Command{statusCommand(), explainCommand()},
	}
}

func statusCommand() *cli.Command {
	var socket, format string
	return &cli.Command{
		Name:  "status",
		Usage: "show each policy: its mode, the pods of this node that it selects, and how it has decided",
		Description: "Asks the agent of this node. PODS are of this node alone. SINCE is the generation of this node's policies in which the\n" +
			"policy came as it is. PERMITTED and DENIED count flows that began since then about which one of its rules has decided, or would\n" +
			"have for the mode audit; what no NetworkPolicy permits is counted with the first that selects the pod.",
		Flags: []cli.Flag{status.SocketFlag(&socket), output.Flag(&format)},
		Action: func(ctx *cli.Context) error {
			within, cancel := context.WithTimeout(ctx.Context, askTime)
			defer cancel()
			rows, err := localapi.Policies.Ask(within, &localapi.Client{Path: socket})
			if err != nil {
				return status.Reachable(err, socket)
			}
			return output.Write(ctx.App.Writer, format, rows, func(w io.Writer) error { return printStatus(w, rows) })
		},
	}
}

func printStatus(w io.Writer, rows []localapi.Policy) error {
	if len(rows) == 0 {
		output.Line(w, "there are no policies in force, so everything is permitted")
		return nil
	}
	output.Line(w, fmt.Sprintf("in force at generation %d of this node", rows[0].Generation))
	output.Line(w, "")
	t := output.Columns(w)
	t.Row(localapi.Policies.Columns...)
	for i := range rows {
		t.Row(localapi.Policies.Cells(&rows[i])...)
	}
	return t.Flush()
}

func explainCommand() *cli.Command {
	var socket, format string
	return &cli.Command{
		Name:      "explain",
		Usage:     "say which policies select two ends, which rule decides, and what would have to change",
		ArgsUsage: "POD -> POD:PORT[/PROTOCOL]",
		Description: "Asks the agent of this node, by what judges its flows. POD is NAME, NAMESPACE/NAME or an address; an IPv6 address before a port\n" +
			"is in brackets. Flags come first. What is judged on another node is judged as that one would, by what this one knows. A shell\n" +
			"takes a bare > for itself: leave out the arrow, or quote it. Exits with 1 if it is not permitted.\n\n" +
			"  tapestry policy explain shop/till shop/db:5432",
		Flags: []cli.Flag{status.SocketFlag(&socket), output.Flag(&format)},
		Action: func(ctx *cli.Context) error {
			ends, err := ends(ctx.Args().Slice())
			if err != nil {
				return cli.Exit(err.Error(), 2)
			}
			within, cancel := context.WithTimeout(ctx.Context, askTime)
			defer cancel()
			rows, err := localapi.Explanations.Ask(within, &localapi.Client{Path: socket}, ends...)
			if err == nil && len(rows) != 1 {
				err = errors.New("the agent gave no answer")
			}
			if err != nil {
				return status.Reachable(err, socket)
			}
			e := &rows[0]
			if err := output.Write(ctx.App.Writer, format, e, func(w io.Writer) error { printExplanation(w, e); return nil }); err != nil {
				return err
			}
			if e.Verdict != permitted {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

// permitted is the verdict for what may be.
const permitted = "permitted"

// ends returns the two ends out of arguments that may have an arrow between them, or be one argument with it.
func ends(args []string) ([]string, error) {
	if len(args) == 1 {
		from, to, _ := strings.Cut(args[0], "->")
		args = []string{strings.TrimSpace(from), strings.TrimSpace(to)}
	}
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "->" || a == "" })
	if len(args) != 2 {
		return nil, errors.New("expected two ends: POD and POD:PORT")
	}
	return args, nil
}

func printExplanation(w io.Writer, e *localapi.Explanation) {
	output.Line(w, fmt.Sprintf("%s (%s) -> %s (%s): %s", e.From.End, e.From.Addr, e.To.End, e.To.Addr, e.Verdict))
	if e.Would != "" && e.Would != e.Verdict {
		output.Line(w, "if the staged policies were enforced: "+e.Would)
	}
	printEnd(w, "egress", &e.From)
	printEnd(w, "ingress", &e.To)
}

func printEnd(w io.Writer, direction string, x *localapi.Explained) {
	if x.Pod == "" && x.Now.Verdict == permitted && (x.Staged == nil || x.Staged.Verdict == permitted) {
		output.Line(w, fmt.Sprintf("%s: nothing is judged, since no pod that policies know is at %s", direction, x.Addr))
		return
	}
	where := ""
	if x.Node != "" {
		where = " on node " + x.Node
	}
	output.Line(w, fmt.Sprintf("%s of %s%s: %s", direction, x.Pod, where, x.Now.Verdict))
	printJudged(w, &x.Now)
	if x.Staged != nil && (x.Staged.Verdict != x.Now.Verdict || x.Staged.Rule != x.Now.Rule) {
		output.Line(w, "  with the staged policies: "+x.Staged.Verdict)
		printJudged(w, x.Staged)
	}
}

func printJudged(w io.Writer, j *localapi.Judged) {
	if len(j.Policies) == 0 {
		output.Line(w, "    no policy selects it")
	} else {
		output.Line(w, "    selected by "+strings.Join(j.Policies, ", "))
	}
	if j.Rule != "" {
		output.Line(w, "    decided by "+j.Rule)
	}
	if j.Change != "" {
		output.Line(w, "    "+j.Change)
	}
}
