// Package flows shows what has happened to flows, as the agent of a node tells it.
package flows

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/cmd/tapestry/status"
	"tapestry.dev/tapestry/localapi"
)

// Command is "tapestry flows".
func Command() *cli.Command {
	var socket, format string
	q := localapi.FlowQuery{}
	return &cli.Command{
		Name:  "flows",
		Usage: "show what happens to the flows of this node",
		Description: "Asks the agent of this node for the last events of flows: which began and ended, which were refused or dropped\n" +
			"and why, and what cluster DNS answered. In a cluster:\n" +
			"kubectl -n kube-system exec ds/tapestry -- tapestry flows --follow --verdict dropped\n\n" +
			"A flag given several times means one of its values; different flags must all be met. With -o json each event is\n" +
			"one line. What was lost, as more happened than was read, is told on standard error.",
		Flags: []cli.Flag{
			status.SocketFlag(&socket), output.Flag(&format),
			&cli.IntFlag{Name: "last", Aliases: []string{"n"}, Usage: "show the last `N` events", Value: 50, Destination: &q.Last},
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with those that come", Destination: &q.Follow},
			&cli.StringSliceFlag{Name: "pod", Usage: "of a pod whose name begins with `[NAMESPACE/]NAME`, at either end"},
			&cli.StringSliceFlag{Name: "namespace", Usage: "of `NAMESPACE`, at either end"},
			&cli.StringSliceFlag{Name: "service", Usage: "to the Service `[NAMESPACE/]NAME`"},
			&cli.StringSliceFlag{Name: "event", Usage: "`EVENT`: begun, ended, refused, dropped or resolved"},
			&cli.StringSliceFlag{Name: "verdict", Usage: "`VERDICT`: forwarded or dropped"},
			&cli.StringSliceFlag{Name: "reason", Usage: "refused or dropped for `REASON`, as tapestry_drops_total has it"},
			&cli.StringSliceFlag{Name: "protocol", Usage: "`PROTOCOL`: tcp, udp, sctp, icmp, icmpv6 or a number"},
			&cli.IntSliceFlag{Name: "port", Usage: "`PORT` of either end, or of the Service"},
			&cli.StringSliceFlag{Name: "name", Usage: "cluster DNS was asked for `NAME`, or *.NAME for all below one"},
			&cli.StringSliceFlag{Name: "address", Usage: "`ADDR` or range, of either end, or of the Service"},
		},
		Action: func(ctx *cli.Context) error {
			var err error
			if q.Filter, err = filter(ctx); err != nil {
				return err
			}
			return status.Reachable(show(ctx.Context, &localapi.Client{Path: socket}, q, printer{out: ctx.App.Writer, told: ctx.App.ErrWriter, json: format == "json"}), socket)
		},
	}
}

func filter(ctx *cli.Context) (f localapi.FlowFilter, err error) {
	f = localapi.FlowFilter{
		Pods: ctx.StringSlice("pod"), Namespaces: ctx.StringSlice("namespace"), Services: ctx.StringSlice("service"), Events: ctx.StringSlice("event"),
		Verdicts: ctx.StringSlice("verdict"), Reasons: ctx.StringSlice("reason"), Protocols: ctx.StringSlice("protocol"), Names: ctx.StringSlice("name"),
	}
	for _, n := range ctx.IntSlice("port") {
		if n < 1 || n > 1<<16-1 {
			return f, fmt.Errorf("--port %d is not a port: expected 1 to 65535", n)
		}
		f.Ports = append(f.Ports, uint16(n))
	}
	for _, text := range ctx.StringSlice("address") {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return f, fmt.Errorf("--address %q is neither an address nor a range", text)
		}
		f.Addresses = append(f.Addresses, p)
	}
	return f, nil
}

// show prints what a query is for until there is no more or ctx ends.
func show(ctx context.Context, c *localapi.Client, q localapi.FlowQuery, p printer) error {
	err := c.Flows(ctx, q, p.print)
	if ctx.Err() != nil {
		return nil // interrupted by whoever has seen enough
	}
	return err
}

// printer prints events. It tells of lost ones apart, so that what is printed stays one event a line.
type printer struct {
	out, told io.Writer
	json      bool
	lost      uint64
}

func (p *printer) print(f *localapi.Flow, lost uint64) error {
	if lost > p.lost {
		output.Line(p.told, fmt.Sprintf("%d events were lost, as more happened than was read", lost-p.lost))
		p.lost = lost
	}
	if !p.json {
		output.Line(p.out, line(f))
		return nil
	}
	return output.JSONLine(p.out, f)
}
