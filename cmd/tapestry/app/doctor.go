package app

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/tapestry/doctor"
)

func doctorCommand() *cli.Command {
	var o doctor.Options
	var output string
	return &cli.Command{
		Name:  "doctor",
		Usage: "find out what keeps this node's network from working, and say what to do",
		Description: "Looks at the agent, TAPs, MTU, the way to other nodes, keys, clocks, the API server, DNS and what kube-proxy left behind.\n" +
			"Changes nothing. Exits with 1 when it finds an error.",
		Flags: []cli.Flag{
			socketFlag(&o.Socket),
			&cli.StringFlag{Name: "api-server", Usage: "`URL` of an API server", DefaultText: "the agent's", Destination: &o.APIServer},
			&cli.StringFlag{Name: "api-server-name", Usage: "`NAME` that its certificate is for", DefaultText: "the address", Destination: &o.ServerName},
			&cli.StringFlag{Name: "credentials", Usage: "`DIR` with the files token and ca.crt", Value: "/var/run/secrets/kubernetes.io/serviceaccount", Destination: &o.Credentials},
			outputFlag(&output),
		},
		Action: func(ctx *cli.Context) error {
			findings := doctor.Diagnose(doctor.Gather(ctx.Context, o))
			if err := printFindings(ctx.App.Writer, output, findings); err != nil {
				return err
			}
			if doctor.Worst(findings) == doctor.Error {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

func printFindings(w io.Writer, format string, findings []doctor.Finding) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(findings)
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Severity, f.Check, f.Message)
		if f.Remedy != "" {
			fmt.Fprintf(t, "\t\t-> %s\n", f.Remedy)
		}
	}
	return t.Flush()
}
