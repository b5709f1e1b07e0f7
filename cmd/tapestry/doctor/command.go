package doctor

import (
	"io"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/cmd/tapestry/status"
)

// Command is "tapestry doctor".
func Command() *cli.Command {
	var o Options
	var format string
	return &cli.Command{
		Name:  "doctor",
		Usage: "find out what is wrong with this node's network, and say what to do",
		Description: "Checks the agent, TAPs, MTU, the way to other nodes, keys, clocks, the API server, DNS and what kube-proxy left behind.\n" +
			"Changes nothing. Exits with 1 if it finds an error.",
		Flags: []cli.Flag{
			status.SocketFlag(&o.Socket),
			&cli.StringFlag{Name: "api-server", Usage: "`URL` of an API server", DefaultText: "the agent's", Destination: &o.APIServer},
			&cli.StringFlag{Name: "api-server-name", Usage: "`NAME` that its certificate is for", DefaultText: "the address", Destination: &o.ServerName},
			&cli.StringFlag{Name: "credentials", Usage: "`DIR` with the files token and ca.crt", Value: Credentials, Destination: &o.Credentials},
			output.Flag(&format),
		},
		Action: func(ctx *cli.Context) error {
			findings := Diagnose(Gather(ctx.Context, o))
			err := output.Write(ctx.App.Writer, format, findings, func(w io.Writer) error { return printFindings(w, findings) })
			if err != nil {
				return err
			}
			if Worst(findings) == Error {
				return cli.Exit("", 1)
			}
			return nil
		},
	}
}

func printFindings(w io.Writer, findings []Finding) error {
	t := output.Columns(w)
	for _, f := range findings {
		t.Row(string(f.Severity), f.Check, f.Message)
		if f.Remedy != "" {
			t.Row("", "", "-> "+f.Remedy)
		}
	}
	return t.Flush()
}
