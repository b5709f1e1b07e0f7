package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/impair"
)

func nameFlag() cli.Flag {
	return &cli.StringFlag{Name: "name", Usage: "`NAME` of the lab", Value: lab.DefaultName, EnvVars: []string{"TAPESTRY_LAB"}}
}

// exitWith returns an error that sets the exit status and prints nothing.
func exitWith(status int) error {
	if status == 0 {
		return nil
	}
	return cli.Exit("", status)
}

func dial(c *cli.Context) (*lab.Client, error) { return lab.Dial(c.String("name")) }

func upCommand() *cli.Command {
	return &cli.Command{
		Name:      "up",
		Usage:     "start a lab and keep it up until ^C, or in the background",
		UsageText: "tapestry-lab up -f FILE [-f FILE...] [--detach] [--wait]",
		Description: `The files are ordinary Kubernetes YAML: Node, Namespace, Pod, Service, EndpointSlice, Ingress, IngressClass,
Secret, ConfigMap and ServiceCIDR. They are watched. A version with a mistake is not applied at all: 'tapestry-lab ps' shows the
mistake, and the last good version stays.

What the file leaves out is given: nodes their addresses (172.31.0.0/24, fd00:172:31::/64) and podCIDRs (10.244.N.0/24,
fd00:10:244:N::/64), pods a node in turn and addresses from the tenth of its podCIDRs on (annotation
tapestry.dev/pod-ips chooses), Services their addresses (10.96.0.0/16, fd00:10:96::/112) and node ports. A Node with the
label tapestry.dev/external=true gets a namespace and no agent. The annotation tapestry.dev/probe-period, such as 50ms,
makes a Pod's probes more frequent than the seconds Kubernetes has.

Outside of the cluster, at the node's default gateway, is a client (see 'tapestry-lab outside') with the addresses 203.0.113.10 and
2001:db8:113::10. A resolver beside it, 203.0.113.53, knows it as outside.example.`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "file", Aliases: []string{"f"}, Usage: "a YAML `FILE`, or a folder of them", Required: true},
			nameFlag(), productFlag(),
			&cli.IntFlag{Name: "mtu", Usage: "MTU of the underlay in `BYTES`", Value: 1500},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "leave it running in the background"},
			&cli.BoolFlag{Name: "wait", Usage: "wait until all agents and pods are ready"},
			&cli.DurationFlag{Name: "timeout", Usage: "`TIME` that --wait waits at most", Value: time.Minute},
			&cli.BoolFlag{Name: "keep-capabilities", Usage: "let the agents keep the capabilities of root; they need none"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("up takes no arguments, got %q: name files with -f", c.Args().First())
			}
			l, err := lab.Up(c.Context, lab.Options{
				Name: c.String("name"), Files: c.StringSlice("file"), UnderlayMTU: c.Int("mtu"), Product: c.String("tapestry"),
				KeepCapabilities: c.Bool("keep-capabilities"), Detach: c.Bool("detach"),
			})
			if err != nil {
				return err
			}
			err = keepUp(c, l)
			if c.Bool("detach") {
				return err // it stays up, so that the user can inspect it
			}
			// ^C has ended c.Context.
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			return errors.Join(err, l.Down(ctx))
		},
	}
}

// keepUp shows the lab. It returns when the lab is to be taken down, or, with --detach, when the lab is up.
func keepUp(c *cli.Context, l *lab.Client) error {
	if c.Bool("wait") {
		if err := l.Wait(c.Context, c.Duration("timeout")); err != nil {
			return err
		}
	}
	st, err := l.Status(c.Context)
	if err != nil {
		return err
	}
	if err := printStatus(c.App.Writer, st); err != nil || c.Bool("detach") {
		return err
	}
	fmt.Fprintf(c.App.Writer, "\nlab %s is up; ^C takes it down\n", l.Name)
	select {
	case <-c.Context.Done():
		return nil
	case <-l.Ended():
		return nil
	}
}

func psCommand() *cli.Command {
	return &cli.Command{
		Name:  "ps",
		Usage: "show nodes, pods, services and what is wrong",
		Flags: []cli.Flag{nameFlag(), &cli.BoolFlag{Name: "json", Usage: "as JSON"}},
		Action: func(c *cli.Context) error {
			l, err := dial(c)
			if err != nil {
				return err
			}
			st, err := l.Status(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return output.JSON(c.App.Writer, st)
			}
			return printStatus(c.App.Writer, st)
		},
	}
}

func execCommand() *cli.Command {
	return runCommand("exec", "POD -- COMMAND", "run a command inside of a pod", `POD is a name in namespace default, or namespace/name. The command has the pod's network,
resolv.conf, hosts and environment. On a terminal it gets a terminal of its own. Its exit status is passed on.`,
		func(args []string) (lab.Target, []string, error) {
			if len(args) < 1 {
				return lab.Target{}, nil, errors.New("no pod was named: expected POD -- COMMAND")
			}
			return lab.Pod(args[0]), args[1:], nil
		})
}

func nodeCommand() *cli.Command {
	return runCommand("node", "NODE -- COMMAND", "run a command in the namespace of a node", "Where the node's agent and its hostNetwork pods are.",
		func(args []string) (lab.Target, []string, error) {
			if len(args) < 1 {
				return lab.Target{}, nil, errors.New("no node was named: expected NODE -- COMMAND")
			}
			return lab.Node(args[0]), args[1:], nil
		})
}

func outsideCommand() *cli.Command {
	return runCommand("outside", "-- COMMAND", "run a command on the underlay, outside of the cluster", "The namespace of a client that reaches the nodes and is no member of the cluster.",
		func(args []string) (lab.Target, []string, error) { return lab.Outside(), args, nil })
}

// runCommand is a command that runs another one in the lab.
func runCommand(name, usage, what, more string, split func([]string) (lab.Target, []string, error)) *cli.Command {
	return &cli.Command{
		Name: name, Usage: what, UsageText: "tapestry-lab " + name + " [--name NAME] " + usage, Description: more,
		Flags: []cli.Flag{
			nameFlag(),
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "add `NAME=VALUE` to the environment"},
			&cli.BoolFlag{Name: "no-tty", Usage: "give the command this terminal's descriptors instead of a terminal of its own"},
		},
		Action: func(c *cli.Context) error {
			where, argv, err := split(c.Args().Slice())
			if err != nil {
				return err
			}
			if len(argv) > 0 && argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return fmt.Errorf("no command was named: expected %s", usage)
			}
			l, err := dial(c)
			if err != nil {
				return err
			}
			return run(c, l, where, lab.Command{Argv: argv, Env: c.StringSlice("env")}, !c.Bool("no-tty"))
		},
	}
}

// run runs a command in the lab, and exits with its status. If this program has a terminal, the command gets one of
// its own, unless wantTerminal is false.
func run(c *cli.Context, l *lab.Client, where lab.Target, cmd lab.Command, wantTerminal bool) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	terminal := wantTerminal && term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
	// ^C ends c.Context, but here it is meant for the command, and this program ends when the command does.
	code, err := l.Exec(context.WithoutCancel(c.Context), where, cmd, lab.Stdio{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Terminal: terminal, Signals: signals,
	})
	if err != nil {
		return cli.Exit(err, 126)
	}
	return exitWith(code)
}

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:        "logs",
		Usage:       "show the log of a pod's containers, of an agent or of the lab itself",
		UsageText:   "tapestry-lab logs [-f] [POD | node/NODE]",
		Description: "Without an argument it shows the log of the lab's supervisor.",
		Flags:       []cli.Flag{nameFlag(), &cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until ^C"}},
		Action: func(c *cli.Context) error {
			args, err := interspersed(c, leading(c.Args().Slice()))
			if err != nil {
				return err
			}
			if len(args) > 1 {
				return fmt.Errorf("expected one pod or node/NODE, got %q", args)
			}
			l, err := dial(c)
			if err != nil {
				return err
			}
			r, err := l.Logs(c.Context, strings.Join(args, ""), c.Bool("follow"))
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(c.App.Writer, r)
			return err
		},
	}
}

func impairCommand() *cli.Command {
	return &cli.Command{
		Name:      "impair",
		Usage:     "make the underlay between two nodes worse",
		UsageText: "tapestry-lab impair A B [--loss 1%] [--delay 5ms] ... | A B --off",
		Description: `A and B are nodes, or "outside". The settings apply in both directions. Which frames are lost, delayed or doubled
depends only on the seed, so that a run can be repeated. While a path is impaired, its packets pass through userspace.
Each call replaces the settings of the last.`,
		Flags: []cli.Flag{
			nameFlag(),
			&cli.StringFlag{Name: "loss", Usage: "lose this `PART` of the packets, like 1%"},
			&cli.DurationFlag{Name: "delay", Usage: "delay every packet by `TIME`, like 5ms"},
			&cli.DurationFlag{Name: "jitter", Usage: "vary the delay by up to `TIME`"},
			&cli.StringFlag{Name: "reorder", Usage: "let this `PART` be overtaken"},
			&cli.StringFlag{Name: "duplicate", Usage: "let this `PART` arrive twice"},
			&cli.StringFlag{Name: "rate", Usage: "`BITS` per second at most, like 100mbit"},
			&cli.IntFlag{Name: "mtu", Usage: "let no larger IP packet through than `BYTES`"},
			&cli.IntFlag{Name: "family", Usage: "impair only packets of IP version `4|6`, not all"},
			&cli.BoolFlag{Name: "no-icmp", Usage: "drop packets that are too large without an ICMP error: a black hole"},
			&cli.Uint64Flag{Name: "seed", Usage: "`NUMBER` that seeds all random choices", Value: 1},
			&cli.BoolFlag{Name: "off", Usage: "restore the path"},
		},
		Action: func(c *cli.Context) error {
			// Flags may also follow the two names, which is natural here.
			args, err := interspersed(c, 2)
			if err != nil {
				return err
			}
			if len(args) != 2 {
				return fmt.Errorf("expected two nodes, got %d names: tapestry-lab impair A B --loss 1%%", len(args))
			}
			cfg, err := impairment(c)
			if err != nil {
				return err
			}
			l, err := dial(c)
			if err != nil {
				return err
			}
			if c.Bool("off") {
				return l.Unimpair(c.Context, args[0], args[1])
			}
			if cfg == (impair.Config{Seed: cfg.Seed, ICMP: cfg.ICMP, Family: cfg.Family}) {
				return errors.New("nothing to do: give an impairment, like --loss 1%, or --off")
			}
			return l.Impair(c.Context, args[0], args[1], cfg)
		},
	}
}

// interspersed sets the flags that follow the first n arguments. Package flag does not look for flags there.
func interspersed(c *cli.Context, n int) ([]string, error) {
	args := c.Args().Slice()
	if len(args) <= n {
		return args, nil
	}
	names, rest := args[:n], args[n:]
	for len(rest) > 0 {
		name, value, assigned := strings.Cut(strings.TrimLeft(rest[0], "-"), "=")
		if !strings.HasPrefix(rest[0], "-") {
			return nil, fmt.Errorf("unexpected argument %q", rest[0])
		}
		rest = rest[1:]
		name = flagOf(c.Command.Flags, name)
		switch {
		case assigned:
		case isSwitch(c.Command.Flags, name):
			value = "true"
		case len(rest) == 0:
			return nil, fmt.Errorf("--%s needs a value", name)
		default:
			value, rest = rest[0], rest[1:]
		}
		if err := c.Set(name, value); err != nil {
			return nil, fmt.Errorf("--%s %s: %w", name, value, err)
		}
	}
	return names, nil
}

// flagOf returns the first name of the flag that has this name, or else the name itself.
func flagOf(flags []cli.Flag, name string) string {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f.Names()[0]
		}
	}
	return name
}

// isSwitch reports whether the flag of that name takes no value.
func isSwitch(flags []cli.Flag, name string) bool {
	return slices.ContainsFunc(flags, func(f cli.Flag) bool {
		_, ok := f.(*cli.BoolFlag)
		return ok && slices.Contains(f.Names(), name)
	})
}

func impairment(c *cli.Context) (impair.Config, error) {
	cfg := impair.Config{
		Delay: c.Duration("delay"), Jitter: c.Duration("jitter"), MTU: c.Int("mtu"),
		ICMP: !c.Bool("no-icmp"), Family: c.Int("family"), Seed: c.Uint64("seed"),
	}
	var errs []error
	for name, part := range map[string]*float64{"loss": &cfg.Loss, "reorder": &cfg.Reorder, "duplicate": &cfg.Duplicate} {
		var err error
		if *part, err = percent(c.String(name)); err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", name, err))
		}
	}
	var err error
	if cfg.Rate, err = bitRate(c.String("rate")); err != nil {
		errs = append(errs, fmt.Errorf("--rate: %w", err))
	}
	return cfg, errors.Join(errs...)
}

// percent reads "1%" or "0.01" as 0.01.
func percent(text string) (float64, error) {
	if text == "" {
		return 0, nil
	}
	number, isPercent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(number, 64)
	if isPercent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, fmt.Errorf("%q is not a share between 0 and 1: expected one like 1%% or 0.01", text)
	}
	return v, nil
}

// bitRate parses a rate like "100mbit", as tc(8) does. The result is in bits per second.
func bitRate(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	number, unit := strings.ToLower(text), int64(1)
	for _, u := range []struct {
		suffix string
		factor int64
	}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}} {
		if n, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = n, u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v*float64(unit) >= 1 && v*float64(unit) <= 1e15) {
		return 0, fmt.Errorf("%q is not a rate: expected one like 100mbit", text)
	}
	return int64(v * float64(unit)), nil
}

func agentCommand() *cli.Command {
	return &cli.Command{
		Name:      "agent",
		Usage:     "kill, stop, start or upgrade the agent of a node",
		UsageText: "tapestry-lab agent kill|stop|start|upgrade NODE",
		Description: "kill sends SIGKILL, and the lab starts the agent again at once. stop sends SIGTERM, and the agent stays down until start.\n" +
			"upgrade starts the executable tapestry as it is now beside the agent, and has it take over the node when it is ready.",
		Flags: []cli.Flag{nameFlag()},
		Action: func(c *cli.Context) error {
			args, err := interspersed(c, 2)
			if err != nil {
				return err
			}
			if len(args) != 2 {
				return errors.New("expected kill, stop, start or upgrade, and the name of a node")
			}
			l, err := dial(c)
			if err != nil {
				return err
			}
			node := args[1]
			switch verb := args[0]; verb {
			case "kill":
				return l.KillAgent(c.Context, node, syscall.SIGKILL, false)
			case "stop":
				return l.KillAgent(c.Context, node, syscall.SIGTERM, true)
			case "start":
				return l.StartAgent(c.Context, node)
			case "upgrade":
				return l.UpgradeAgent(c.Context, node, "")
			default:
				return fmt.Errorf("unknown action %q: expected kill, stop, start or upgrade", verb)
			}
		},
	}
}

func keeperCommand() *cli.Command {
	return &cli.Command{
		Name:        "keeper",
		Usage:       "kill the keeper of a node",
		UsageText:   "tapestry-lab keeper kill NODE",
		Description: "kill sends SIGKILL. The lab starts the next keeper at once, and the agent gives it everything back.",
		Flags:       []cli.Flag{nameFlag()},
		Action: func(c *cli.Context) error {
			args, err := interspersed(c, 2)
			if err != nil {
				return err
			}
			if len(args) != 2 || args[0] != "kill" {
				return errors.New("expected kill, and the name of a node")
			}
			l, err := dial(c)
			if err != nil {
				return err
			}
			return l.KillKeeper(c.Context, args[1], syscall.SIGKILL)
		},
	}
}

func downCommand() *cli.Command {
	return &cli.Command{
		Name:        "down",
		Usage:       "take a lab down, also one that crashed, and leave nothing behind",
		Flags:       []cli.Flag{nameFlag(), &cli.BoolFlag{Name: "all", Usage: "every lab of this user"}},
		Description: "The processes, namespaces and TAPs of a lab end with its supervisor in any case. This command also removes the lab's folder.",
		Action: func(c *cli.Context) error {
			dir, err := lab.DefaultStateDir()
			if err != nil {
				return err
			}
			if !c.Bool("all") {
				return lab.DownIn(c.Context, dir, c.String("name"))
			}
			names, err := lab.Names(dir)
			for _, name := range names {
				err = errors.Join(err, lab.DownIn(c.Context, dir, name))
			}
			return err
		},
	}
}
