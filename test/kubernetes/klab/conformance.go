package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"tapestry.dev/tapestry/test/kubernetes/conformance"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

// conform runs the official tests, whose output it shows, and fails when a test in focus did not pass.
func conform(ctx context.Context, l lab.Lab, args []string) error {
	r := conformance.Run{Bin: l.Bin, Kubeconfig: l.Kubeconfig(), Out: filepath.Join(l.Work, "conformance")}
	fs := flag.NewFlagSet("conformance", flag.ExitOnError)
	fs.StringVar(&r.Focus, "focus", conformance.Network, "`expression` for the names of the tests to run")
	fs.StringVar(&r.Skip, "skip", conformance.Harmful, "`expression` for the names of those to leave out")
	others := fs.Bool("others", false, "run the tests of the network beside those of Conformance, in place of -focus and -skip: all that package conformance has no reason to leave out")
	fs.IntVar(&r.Procs, "procs", 3, "`number` of tests at one time")
	fs.StringVar(&r.Out, "out", r.Out, "`directory` of the reports")
	summary := fs.String("summary", "", "`file` to write names and times to (default: summary.txt in -out)")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *others {
		r.Focus, r.Skip = conformance.Others, conformance.LeftOut()
	}
	if *summary == "" {
		*summary = filepath.Join(r.Out, "summary.txt")
	}
	s, err := l.State()
	if err != nil {
		return err
	}
	r.Nodes = len(s.Nodes)
	if r.In, err = s.In(s.Nodes[0].Name); err != nil {
		return err
	}
	report, err := r.Do(ctx)
	if err != nil {
		return err
	}
	text := report.String()
	fmt.Print("\n", text)
	if err := os.WriteFile(*summary, []byte(text), 0o644); err != nil {
		return err
	}
	return report.Err(r)
}
