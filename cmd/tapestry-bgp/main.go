// Command tapestry-bgp announces addresses of load balancers by BGP: those that the agent of its node says. It is
// a process of its own, so that agents link nothing of it.
package main

import (
	"context"
	"flag"
	"log/slog"

	"tapestry.dev/tapestry/announce/bgp"
	"tapestry.dev/tapestry/cmd/announcer"
)

func main() {
	passwords := ""
	p := announcer.Program{
		Name: "tapestry-bgp",
		Usage: "tapestry-bgp announces addresses of load balancers by BGP, as the agent of its node says. It needs the host's network,\n" +
			"no capability, and to be root or one of the agent's --announce-uid.",
		Flags: func(f *flag.FlagSet) {
			f.StringVar(&passwords, "passwords", "", "`DIR` with a file for each password that a BGPPeer names")
		},
		Announce: func(ctx context.Context, at announcer.Place, log *slog.Logger) error {
			bgp.Run(ctx, bgp.Options{Node: at.Node, Agent: at.Agent, Passwords: passwords, Log: log})
			return nil
		},
	}
	p.Main()
}
