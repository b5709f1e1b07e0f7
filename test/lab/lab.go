// Package lab is a small real cluster on this machine: every node a network namespace with an agent process of its own,
// every pod a network namespace with a TAP, joined by a kernel bridge. It starts the supervisor that is the lab and
// speaks to it.
//
// The supervisor (package supervisor) lives in network, mount and process namespaces of its own, and without root in a
// user namespace of its own. A process with threads cannot enter such a namespace, so commands are not started
// from outside: the supervisor starts them and is given the descriptors of their standard streams.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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

// DefaultName is the lab that commands mean when they name none.
const DefaultName = "lab"

// superviseArg is the argument by which the executable knows that it is to be a supervisor.
const superviseArg = "lab-supervise"

// Options of Up.
type Options struct {
	// Name tells labs on one machine apart; "" is DefaultName.
	Name string
	// Files are the YAML files, and folders of them, that say what the lab is. They are watched.
	Files []string
	// StateDir is where labs have their folders; "" is DefaultStateDir.
	StateDir string
	// UnderlayMTU in bytes; 0 is 1500.
	UnderlayMTU int
	// Exe is the program that is the shim and the built-in server; "" is this program.
	Exe string
	// Product is the executable tapestry; "" is the one that product.Find finds.
	Product string
	// AgentFlags are further flags of all agents.
	AgentFlags []string
	// KeepCapabilities leaves agents with the capabilities of root.
	KeepCapabilities bool
	// Detach lets the lab live on when this process ends.
	Detach bool
	Logger *slog.Logger
}

// Maybe becomes one of the processes of a lab, and does not return, when this process was started to be one. A program
// that calls Up calls it first thing in main.
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

// Supervise is the supervisor; args are what Up gave it. It returns the exit status.
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

// failureFile is where a supervisor that could not start says why.
func failureFile(dir string) string { return filepath.Join(dir, "failure") }

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// Up starts a lab and returns when its supervisor answers: everything is then being started, and Wait waits for it.
// What is wrong with the files is an error, and nothing is left.
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
		return o, errors.New("no files: name a YAML file with at least one Node, or a folder of such")
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

// claim makes the lab's folder, if need be in place of one that a crash left.
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
		Name: o.Name, Dir: dir, Files: o.Files, MTU: o.UnderlayMTU, Exe: o.Exe, Product: o.Product, AgentFlags: o.AgentFlags,
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
	// ^C is for the client, who then takes the lab down. A group is enough for that. A session of its own would be
	// scheduled as one, against that of the client with all it runs (sched(7), autogroup): half the processors for a
	// node's agent, however many clients and servers it stands between.
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

// run starts cmd from a thread that lives until cmd ends: the kernel ties a parent-death signal to the thread.
func run(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its folder
		}
	}()
	if err := <-started; err != nil {
		return nil, userns.Explain(err)
	}
	return done, nil
}

// awaitAnswer waits for the supervisor's socket.
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

// failure is why the supervisor ended.
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

// environment is what agents and containers start from. The programs can be called by their names there.
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
