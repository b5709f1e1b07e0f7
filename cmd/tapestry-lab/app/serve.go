package app

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/test/serve"
)

// serveCommand is "tapestry-lab serve", the built-in program for pods.
func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "answer TCP, UDP and HTTP with the names of both ends",
		Description: `This is the program of a lab's pods that have no command of their own. Every answer is one line of JSON: the
name of the pod, the addresses of the client and of the server as the server sees them, and what it received.

   --tcp    answers each new connection at once, and then every line on it
   --udp    answers every datagram
   --http   answers every request with its method, path, headers and body, and also has
            /ws                   a WebSocket that answers every message
            /stream?bytes=N       N bytes; ms=M spreads them over M milliseconds
            /sleep?ms=N           the usual answer, later
            /status/CODE          the usual answer with that status
            /health               200, or 503 after a request to /unready until one to /ready

Without any port it serves HTTP on 8080.`,
		UsageText: "tapestry-lab serve --http 8080 --tcp 9000 --udp 9000",
		Flags: []cli.Flag{
			&cli.IntSliceFlag{Name: "http", Usage: "serve HTTP on this `PORT` (repeatable)", EnvVars: []string{"SERVE_HTTP"}},
			&cli.IntSliceFlag{Name: "tcp", Usage: "serve plain TCP on this `PORT` (repeatable)", EnvVars: []string{"SERVE_TCP"}},
			&cli.IntSliceFlag{Name: "udp", Usage: "serve UDP on this `PORT` (repeatable)", EnvVars: []string{"SERVE_UDP"}},
			&cli.StringFlag{Name: "name", Usage: "answer as `NAME`", EnvVars: []string{"POD_NAME"}, DefaultText: "the host name"},
			&cli.StringFlag{Name: "address", Usage: "listen on this `ADDRESS` only", DefaultText: "all"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cli.Exit("serve takes no arguments: see 'tapestry-lab serve --help'", 2)
			}
			return serve.Run(c.Context, serve.Config{
				Name: c.String("name"), Address: c.String("address"),
				HTTP: c.IntSlice("http"), TCP: c.IntSlice("tcp"), UDP: c.IntSlice("udp"),
				Log: slog.Default(),
			})
		},
	}
}
