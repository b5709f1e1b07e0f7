// Package inside contains the commands that the demo and the end-to-end tests run inside pods and nodes.
package inside

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/inspect"
	"tapestry.dev/tapestry/test/probe"
)

// Probe is "tapestry-lab probe", the client. Each result is one line of JSON.
func Probe() *cli.Command {
	return &cli.Command{
		Name:   "probe",
		Usage:  "ask a server and print what was seen, as JSON",
		Hidden: true,
		Subcommands: []*cli.Command{
			probeAsk(), probeHold(), probeWatch(), probeFollow(), probePing(), probeResolve(),
			probeGet(), probeWebSocket(), probePathMTU(), probeCapture(), probeStockWireGuard(), probeServeReady(),
			probeBenchServer(), probeGiveNamespace(), probeRulesets(),
		},
	}
}

func probeAsk() *cli.Command {
	var r probe.Request
	var times int
	return &cli.Command{
		Name: "ask", ArgsUsage: "tcp|udp ADDR",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "local-port", Destination: &r.LocalPort},
			&cli.StringFlag{Name: "body", Value: "hello", Destination: &r.Body},
			&cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Destination: &r.Timeout},
			&cli.IntFlag{Name: "times", Value: 1, Destination: &times},
		},
		Action: func(c *cli.Context) error {
			r.Network, r.Addr = c.Args().Get(0), c.Args().Get(1)
			for range times {
				if err := printJSON(probe.Ask(c.Context, r)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func probeHold() *cli.Command {
	var r probe.Request
	var interval time.Duration
	return &cli.Command{
		Name: "hold", ArgsUsage: "ADDR", Usage: "hold a connection until the input ends",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Value: 2 * time.Millisecond, Destination: &interval},
			&cli.IntFlag{Name: "local-port", Destination: &r.LocalPort},
		},
		Action: func(c *cli.Context) error {
			r.Network, r.Addr = "tcp", c.Args().First()
			letGo := make(chan struct{})
			go func() {
				defer close(letGo)
				_, _ = io.Copy(io.Discard, os.Stdin)
			}()
			return printJSON(probe.Hold(c.Context, r, interval, letGo, sayStarted))
		},
	}
}

func probeWatch() *cli.Command {
	var r probe.Request
	return &cli.Command{
		Name: "watch", ArgsUsage: "tcp|udp ADDR", Usage: "make connections until the input ends; a line of it is the mark",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "sees", Usage: "`POD` that has to answer before the watch has started (repeatable)"},
			&cli.DurationFlag{Name: "timeout", Value: 5 * time.Second, Destination: &r.Timeout},
		},
		Action: func(c *cli.Context) error {
			r.Network, r.Addr = c.Args().Get(0), c.Args().Get(1)
			mark, letGo := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(letGo)
				in := bufio.NewScanner(os.Stdin)
				if in.Scan() {
					close(mark)
				}
				for in.Scan() {
				}
			}()
			return printJSON(probe.Watch(c.Context, r, probe.Signals{Pods: c.StringSlice("sees"), Started: sayStarted, Mark: mark, LetGo: letGo}))
		},
	}
}

func probeFollow() *cli.Command {
	var length time.Duration
	var from string
	return &cli.Command{
		Name: "follow", ArgsUsage: "ADDR",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Value: 2 * time.Second, Destination: &length},
			&cli.StringFlag{Name: "until-not", Usage: "`POD` that answers at first", Required: true, Destination: &from},
		},
		Action: func(c *cli.Context) error {
			return printJSON(probe.Follow(c.Context, c.Args().First(), from, length, sayStarted))
		},
	}
}

func probePing() *cli.Command {
	var r probe.Request
	return &cli.Command{
		Name: "ping", ArgsUsage: "ADDR",
		Flags: []cli.Flag{&cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Destination: &r.Timeout}},
		Action: func(c *cli.Context) error {
			to, err := netip.ParseAddr(c.Args().First())
			if err != nil {
				return err
			}
			return printJSON(probe.Echo(c.Context, to, r.Timeout))
		},
	}
}

func probeResolve() *cli.Command {
	return &cli.Command{
		Name: "resolve", ArgsUsage: "host|srv|ptr|cname|txt NAME",
		Action: func(c *cli.Context) error {
			got, err := probe.Resolve(c.Context, c.Args().Get(0), c.Args().Get(1))
			if err != nil {
				return printJSON(map[string]string{"error": err.Error()})
			}
			return printJSON(map[string][]string{"answers": got})
		},
	}
}

func probeGet() *cli.Command {
	var f probe.Fetch
	return &cli.Command{
		Name: "get", ArgsUsage: "URL",
		Flags: append(fetchFlags(&f), &cli.StringSliceFlag{Name: "header", Usage: "`NAME: VALUE`"}),
		Action: func(c *cli.Context) error {
			f.URL, f.Header = c.Args().First(), map[string]string{}
			for _, h := range c.StringSlice("header") {
				name, value, _ := strings.Cut(h, ":")
				f.Header[name] = strings.TrimSpace(value)
			}
			return printJSON(probe.Get(c.Context, f))
		},
	}
}

func probeWebSocket() *cli.Command {
	var f probe.Fetch
	var message string
	return &cli.Command{
		Name: "websocket", ArgsUsage: "URL",
		Flags: append(fetchFlags(&f), &cli.StringFlag{Name: "message", Value: "hello", Destination: &message}),
		Action: func(c *cli.Context) error {
			f.URL = c.Args().First()
			got, err := probe.WebSocket(c.Context, f, message)
			if err != nil {
				return printJSON(map[string]string{"error": err.Error()})
			}
			return printJSON(map[string]string{"text": got})
		},
	}
}

func probePathMTU() *cli.Command {
	var r probe.Request
	var size int
	return &cli.Command{
		Name: "pmtu", ArgsUsage: "ADDR",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "size", Value: 1392, Destination: &size},
			&cli.DurationFlag{Name: "timeout", Value: 3 * time.Second, Destination: &r.Timeout},
		},
		Action: func(c *cli.Context) error {
			to, err := netip.ParseAddrPort(c.Args().First())
			if err != nil {
				return err
			}
			mtu, err := probe.PathMTU(c.Context, to, size, r.Timeout)
			if err != nil {
				return err
			}
			return printJSON(map[string]int{"mtu": mtu})
		},
	}
}

func probeCapture() *cli.Command {
	var canary, iface string
	return &cli.Command{
		Name: "capture", Usage: "count what crosses an interface until the input ends",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "interface", Value: "eth0", Destination: &iface},
			&cli.StringFlag{Name: "canary", Destination: &canary},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithCancel(c.Context)
			go func() {
				defer cancel()
				_, _ = io.Copy(io.Discard, os.Stdin)
			}()
			t, err := inspect.Capture(ctx, iface, translate.WireGuardPort, []byte(canary), sayStarted)
			if err != nil {
				return err
			}
			return printJSON(t)
		},
	}
}

func probeStockWireGuard() *cli.Command {
	return &cli.Command{
		Name: "stock-wireguard", Usage: "run an unmodified wireguard-go device until killed",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key", Required: true}, &cli.StringFlag{Name: "peer", Required: true}, &cli.StringFlag{Name: "endpoint", Required: true},
			&cli.StringSliceFlag{Name: "address"}, &cli.StringSliceFlag{Name: "allowed"},
		},
		Action: func(c *cli.Context) error {
			return probe.StockWireGuard(c.Context, probe.StockConfig{
				Key: c.String("key"), Peer: c.String("peer"), Endpoint: c.String("endpoint"),
				Addrs: c.StringSlice("address"), Allowed: c.StringSlice("allowed"),
			}, sayStarted)
		},
	}
}

func probeServeReady() *cli.Command {
	return &cli.Command{
		Name: "serve-ready", Usage: "run the built-in server on TCP and UDP 9000, and say when it listens",
		Flags: []cli.Flag{&cli.StringFlag{Name: "name"}},
		Action: func(c *cli.Context) error {
			return probe.Serve(c.Context, c.String("name"), 9000, sayStarted)
		},
	}
}

func probeBenchServer() *cli.Command {
	return &cli.Command{
		Name: "bench-server", Usage: "answer measurements, and say when",
		Flags: []cli.Flag{&cli.IntFlag{Name: "port", Value: 5201}},
		Action: func(c *cli.Context) error {
			s, err := load.Listen(c.Context, fmt.Sprintf(":%d", c.Int("port")), "")
			if err != nil {
				return err
			}
			sayStarted()
			return s.Serve(c.Context)
		},
	}
}

func probeGiveNamespace() *cli.Command {
	return &cli.Command{
		Name: "give-namespace", Usage: "hand this network namespace to a keeper",
		Flags: []cli.Flag{&cli.StringFlag{Name: "keeper"}, &cli.StringFlag{Name: "key"}},
		Action: func(c *cli.Context) error {
			return probe.GiveNamespace(c.Context, c.String("keeper"), c.String("key"))
		},
	}
}

func probeRulesets() *cli.Command {
	return &cli.Command{
		Name: "rulesets", Usage: "list the packet filter tables of this namespace, or of a process's",
		Flags: []cli.Flag{&cli.IntFlag{Name: "pid"}},
		Action: func(c *cli.Context) error {
			open := tap.CurrentNamespace
			if pid := c.Int("pid"); pid > 0 {
				open = func() (*tap.Namespace, error) { return tap.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", pid)) }
			}
			ns, err := open()
			if err != nil {
				return err
			}
			defer ns.Close()
			var tables []string
			if err := ns.Do(func() (err error) { tables, err = inspect.Rulesets(); return err }); err != nil {
				return err
			}
			return printJSON(map[string][]string{"tables": tables})
		},
	}
}

func fetchFlags(f *probe.Fetch) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "connect", Usage: "connect to `ADDR` whatever the URL says", Destination: &f.Connect},
		&cli.BoolFlag{Name: "http2", Destination: &f.HTTP2},
	}
}

func sayStarted() { fmt.Println("started") }

func printJSON(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
