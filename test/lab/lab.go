// Package lab runs a small real cluster on this machine. Every node is a network namespace with an agent process, every
// pod is a network namespace with a TAP, and a kernel bridge joins the nodes. The package starts the supervisor, which
// is the process behind a lab, and talks to it.
//
// The supervisor (package supervisor) lives in network, mount and PID namespaces of its own, and without root in a user
// namespace of its own. A process with threads cannot enter such a user namespace. Commands are therefore not started
// from outside: the supervisor starts them, and gets the descriptors of their standard streams.
package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/shim"
	"tapestry.dev/tapestry/test/lab/supervisor"
	"tapestry.dev/tapestry/test/product"
	"tapestry.dev/tapestry/test/userns"
)

// DefaultName is the lab that commands use when they name none.
const DefaultName = "lab"

// superviseArg is the argument that makes the executable a supervisor.
const superviseArg = "lab-supervise"

// Options are the options of Up.
type Options struct {
	// Name distinguishes labs on one machine; "" is DefaultName.
	Name string
	// Files are YAML files, and folders of them, that describe the lab. The supervisor watches them.
	Files []string
	// StateDir is the folder that has the labs' folders; "" is DefaultStateDir.
	StateDir string
	// UnderlayMTU in bytes; 0 is 1500.
	UnderlayMTU int
	// Exe is the program that acts as the shim and as the built-in server; "" is this program.
	Exe string
	// Product is the executable tapestry; "" is the executable that product.Find finds.
	Product string
	// Keeper is the executable of the nodes' keepers; "" is Product.
	Keeper string
	// AgentFlags are more flags for all agents.
	AgentFlags []string
	// LoadBalancers are ranges of load balancers' addresses. Every node routes them into its host TAP, and forwards.
	LoadBalancers []netip.Prefix
	// NoHostTAP leaves nodes without a host TAP, as where no step may make one.
	NoHostTAP bool
	// Announced has the agents expect announcers of these kinds, l2 or bgp, which ask at AnnounceSocket.
	Announced []string
	// KeepCapabilities leaves the capabilities of root to the agents.
	KeepCapabilities bool
	// Detach lets the lab live on when this process ends.
	Detach bool
	Logger *slog.Logger
}

// Maybe turns this process into a process of a lab if it was started as one; then it does not return. A program that
// calls Up must call Maybe first in main.
func Maybe() {
	userns.Maybe()
	switch {
	case len(os.Args) < 2:
	case os.Args[1] == shim.Arg:
		os.Exit(shim.Main())
	case os.Args[1] == superviseArg:
		os.Exit(Supervise(os.Args[2:]))
	}
}

// Supervise is the main function of the supervisor. args are what Up passed. It returns the exit status.
func Supervise(args []string) int {
	if err := supervise(args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func supervise(args []string) (err error) {
	if len(args) != 1 {
		return errors.New("the supervisor is started by 'tapestry-lab up' only")
	}
	dir := args[0]
	defer func() {
		if err != nil {
			_ = os.WriteFile(failureFile(dir), []byte(err.Error()), 0o600) // the log has it too
		}
	}()
	b, err := os.ReadFile(rpc.ConfigFile(dir))
	if err != nil {
		return err
	}
	var cfg supervisor.Config
	if err := json.Unmarshal(b, &cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := supervisor.Run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// failureFile returns the file in which a supervisor that could not start says why.
func failureFile(dir string) string { return filepath.Join(dir, "failure") }

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// Up starts a lab and returns when its supervisor answers. Nodes and pods are then still starting; Wait waits for them.
// Mistakes in the files are an error, and then nothing is left.
func Up(ctx context.Context, o Options) (*Client, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.StateDir, o.Name)
	if err := claim(dir); err != nil {
		return nil, fmt.Errorf("lab %s: %w", o.Name, err)
	}
	c, err := start(ctx, dir, o)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

func (o Options) complete() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if !validName.MatchString(o.Name) {
		return o, fmt.Errorf("%q is no name for a lab: expected up to 32 small letters, digits and dashes", o.Name)
	}
	if len(o.Files) == 0 {
		return o, errors.New("no files: name a YAML file with at least one Node, or a folder of such files")
	}
	o.Files = slices.Clone(o.Files)
	for i, f := range o.Files {
		abs, err := filepath.Abs(f)
		if err != nil {
			return o, err
		}
		o.Files[i] = abs
	}
	if o.UnderlayMTU == 0 {
		o.UnderlayMTU = 1500
	}
	if o.UnderlayMTU < 576 || o.UnderlayMTU > 65535 {
		return o, fmt.Errorf("an underlay MTU of %d is not possible: expected 576 to 65535", o.UnderlayMTU)
	}
	if o.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return o, err
		}
		o.Exe = exe
	}
	exe, err := product.Find(o.Product)
	if err != nil {
		return o, err
	}
	o.Product = exe
	if o.StateDir == "" {
		dir, err := DefaultStateDir()
		if err != nil {
			return o, err
		}
		o.StateDir = dir
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}

// claim makes the lab's folder. It replaces a folder that a crash left.
func claim(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if alive(dir) {
			return errors.New("is up already: take it down with 'tapestry-lab down', or choose another --name")
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	return err
}

// start starts the supervisor in dir and waits until it answers.
func start(ctx context.Context, dir string, o Options) (*Client, error) {
	cfg, err := json.Marshal(supervisor.Config{
		Name: o.Name, Dir: dir, Files: o.Files, MTU: o.UnderlayMTU, Exe: o.Exe, Product: o.Product, Keeper: cmp.Or(o.Keeper, o.Product), AgentFlags: o.AgentFlags, LoadBalancers: o.LoadBalancers,
		NoHostTAP: o.NoHostTAP, Announced: o.Announced,
		Env: environment(o.Exe, o.Product), KeepCapabilities: o.KeepCapabilities,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(rpc.ConfigFile(dir), cfg, 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(rpc.LogFile(dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd, err := userns.Command(userns.Options{Args: []string{superviseArg, dir}, Detach: o.Detach})
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	// ^C must reach only the client, which then takes the lab down. A process group is enough for this. The scheduler
	// would weigh a session of its own against the session of the client and all its programs (sched(7), autogroup),
	// and a node's agent would get half the processors however many clients and servers it serves.
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = o.Detach, !o.Detach
	ended, err := run(cmd)
	if err != nil {
		return nil, err
	}
	if err := writePID(dir, cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		<-ended
		return nil, err
	}
	c := &Client{Name: o.Name, Dir: dir, ended: ended}
	if err := c.awaitAnswer(ctx); err != nil {
		_ = cmd.Process.Kill()
		<-ended
		return nil, err
	}
	return c, nil
}

// run starts cmd from a thread that lives until cmd ends, since the kernel ties a parent-death signal to the thread.
func run(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the lab's folder says how it ended
		}
	}()
	if err := <-started; err != nil {
		return nil, userns.Explain(err)
	}
	return done, nil
}

// awaitAnswer waits until the supervisor listens on its socket.
func (c *Client) awaitAnswer(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.Status(ctx); err == nil {
			return nil
		}
		select {
		case <-c.ended:
			return c.failure()
		case <-ctx.Done():
			return fmt.Errorf("start lab %s: %w", c.Name, ctx.Err())
		case <-tick.C:
		}
	}
}

// failure returns why the supervisor ended.
func (c *Client) failure() error {
	if b, err := os.ReadFile(failureFile(c.Dir)); err == nil {
		return errors.New(string(b))
	}
	b, err := os.ReadFile(rpc.LogFile(c.Dir))
	if err != nil {
		return fmt.Errorf("lab %s: the supervisor has ended", c.Name)
	}
	return fmt.Errorf("lab %s: the supervisor has ended: %s", c.Name, strings.TrimSpace(string(b[max(0, len(b)-2000):])))
}

// environment returns the base environment of agents and containers. Its PATH contains the directories of programs.
func environment(programs ...string) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	dirs := filepath.SplitList(path)
	for _, p := range programs {
		if dir := filepath.Dir(p); p != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	env := []string{"PATH=" + strings.Join(dirs, string(filepath.ListSeparator))}
	for _, name := range []string{"HOME", "LANG", "LC_ALL", "TZ", "GOCOVERDIR", "GORACE"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}
