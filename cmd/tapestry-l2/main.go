// Command tapestry-l2 announces addresses of load balancers by ARP and NDP: those that the agent of its node says. It
// is a process of its own, so that the agent needs no NET_RAW and links nothing of it.
package main

import (
	"context"
	"log/slog"

	"tapestry.dev/tapestry/announce/link"
	"tapestry.dev/tapestry/cmd/announcer"
)

var program = announcer.Program{
	Name: "tapestry-l2",
	Usage: "tapestry-l2 announces addresses of load balancers by ARP and NDP, as the agent of its node says. It needs the\n" +
		"capability NET_RAW, the host's network, and to be root or the agent's user.",
	Announce: func(ctx context.Context, at announcer.Place, log *slog.Logger) error {
		return link.Run(ctx, link.Options{Node: at.Node, Agent: at.Agent, Log: log})
	},
}

func main() { program.Main() }
