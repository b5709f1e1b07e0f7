// Command klab runs a Kubernetes cluster on this machine, for Tapestry to be the network of: see package lab.
//
//	klab up                bring up a cluster of two nodes, which are not Ready for want of a network
//	klab apply             deploy Tapestry, from the manifest in deploy/
//	klab status            show the cluster
//	klab kubectl ARGS...   as administrator, in the first node's network
//	klab exec NODE COMMAND...   in all of a node's namespaces, or in the network outside
//	klab conformance       run the official tests
//	klab uninstall         remove Tapestry, and fail when something of it is left
//	klab restart-controlplane   end the control plane, and start it again with the same data
//	klab down              take it down
//
// klab COMMAND -h lists a command's flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"tapestry.dev/tapestry/test/kubernetes/image"
	"tapestry.dev/tapestry/test/kubernetes/lab"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: withoutTime})))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "klab:", err)
		os.Exit(1)
	}
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

const usage = "give a command: up, apply, status, kubectl, exec, conformance, uninstall, restart-controlplane or down"

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	name, args := args[0], args[1:]
	switch name {
	case node.Argument:
		return node.Main(os.Stdin, image.Pause)
	case lab.HoldArgument:
		return hold()
	}
	l, err := theLab()
	if err != nil {
		return err
	}
	commands := map[string]func(context.Context, lab.Lab, []string) error{
		"up": up, "apply": apply, "status": status, "kubectl": kubectl, "exec": execute,
		"conformance": conform, "uninstall": uninstall, "restart-controlplane": restart, "down": down,
	}
	command, ok := commands[name]
	if !ok {
		return fmt.Errorf("there is no command %q: %s", name, usage)
	}
	return command(ctx, l, args)
}

// theLab returns the lab in TAPESTRY_KLAB, with the programs beside this one.
func theLab() (lab.Lab, error) {
	self, err := os.Executable()
	if err != nil {
		return lab.Lab{}, err
	}
	l := lab.Lab{Work: lab.DefaultWork(), Bin: filepath.Dir(self)}
	if !filepath.IsAbs(l.Work) {
		return l, fmt.Errorf("TAPESTRY_KLAB is %q: expected an absolute path", l.Work)
	}
	return l, nil
}

// hold keeps this process and its namespaces until the process is ended.
func hold() error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	return nil
}

// parse parses the flags of a command that takes no arguments.
func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("klab %s takes no argument %q", fs.Name(), fs.Arg(0))
	}
	return nil
}

func up(ctx context.Context, l lab.Lab, args []string) error {
	var o lab.Options
	fs := flag.NewFlagSet("up", flag.ExitOnError)
	fs.IntVar(&o.Nodes, "nodes", 2, "`number` of nodes")
	fs.BoolVar(&o.DualStack, "dual-stack", false, "addresses of both families")
	fs.StringVar(&o.UserNS, "userns", "", "`node` that is inside a user namespace of 65,536 ids, as rootless nodes are")
	fs.BoolVar(&o.Forward, "forward", false, "nodes whose kernels forward packets: not for Tapestry")
	if err := parse(fs, args); err != nil {
		return err
	}
	if o.Nodes < 1 || o.Nodes > 100 {
		return fmt.Errorf("-nodes is %d: expected 1 to 100", o.Nodes)
	}
	if o.UserNS != "" && !slices.Contains(o.Names(), o.UserNS) {
		return fmt.Errorf("-userns is %q: expected a node: %s", o.UserNS, strings.Join(o.Names(), ", "))
	}
	return l.Up(ctx, o)
}

func down(_ context.Context, l lab.Lab, args []string) error {
	if err := parse(flag.NewFlagSet("down", flag.ExitOnError), args); err != nil {
		return err
	}
	return l.Down()
}

func uninstall(ctx context.Context, l lab.Lab, args []string) error {
	fs := flag.NewFlagSet("uninstall", flag.ExitOnError)
	manifest := fs.String("f", "deploy/tapestry.yaml", "`file` of the manifests that were applied")
	rest := fs.String("rest", "deploy/uninstall.yaml", "`file` of the manifest for what is left on the nodes")
	if err := parse(fs, args); err != nil {
		return err
	}
	return l.Uninstall(ctx, *manifest, *rest)
}

func restart(ctx context.Context, l lab.Lab, args []string) error {
	if err := parse(flag.NewFlagSet("restart-controlplane", flag.ExitOnError), args); err != nil {
		return err
	}
	if err := l.StopControlPlane(); err != nil {
		return err
	}
	return l.StartControlPlane(ctx)
}

// kubectl replaces this process with kubectl.
func kubectl(_ context.Context, l lab.Lab, args []string) error {
	s, err := l.State()
	if err != nil {
		return err
	}
	argv, err := l.KubectlCommand(s, args...)
	if err != nil {
		return err
	}
	return become(argv)
}

// execute replaces this process with a command in a node.
func execute(_ context.Context, l lab.Lab, args []string) error {
	if len(args) < 2 {
		return errors.New("klab exec needs a node, or outside, and a command")
	}
	s, err := l.State()
	if err != nil {
		return err
	}
	argv, err := s.Inside(args[0], args[1:]...)
	if err != nil {
		return err
	}
	return become(argv)
}

func become(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, argv, os.Environ()))
}

func status(ctx context.Context, l lab.Lab, args []string) error {
	if err := parse(flag.NewFlagSet("status", flag.ExitOnError), args); err != nil {
		return err
	}
	s, err := l.State()
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		fmt.Printf("%s %v: process %d, logs in %s\n", n.Name, n.Addrs, n.PID, filepath.Join(l.Dir(), n.Name))
	}
	fmt.Printf("control plane: process %d, KUBECONFIG=%s in the network of %s\n\n", s.ControlPlane, l.Kubeconfig(), s.Nodes[0].Name)
	argv, err := l.KubectlCommand(s, "get", "nodes,pods,services", "--all-namespaces", "--output=wide")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func apply(ctx context.Context, l lab.Lab, args []string) error {
	beside := filepath.Dir(l.Bin) // what make builds from this repository
	a := lab.Apply{Image: filepath.Join(beside, "tapestry-image.tar")}
	fs := flag.NewFlagSet("apply", flag.ExitOnError)
	reference := fs.Bool("reference", false, "not Tapestry, but what it is compared with: bridge plugin, kube-proxy, CoreDNS; needs \"up -forward\"")
	fs.StringVar(&a.Manifest, "f", "deploy/tapestry.yaml", "`file` of the manifests")
	fs.DurationVar(&a.Timeout, "timeout", a.DefaultTimeout(), "how long nodes may take to be Ready")
	if err := parse(fs, args); err != nil {
		return err
	}
	if *reference {
		return l.ApplyReference(ctx, filepath.Join(beside, "peers", "coredns"))
	}
	return l.Apply(ctx, a)
}
