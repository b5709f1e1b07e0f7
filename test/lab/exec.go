package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// Target is where a command runs.
type Target struct {
	kind, name string
}

// Pod is a pod, given as "namespace/name", or as "name" in the namespace default.
func Pod(name string) Target {
	if !strings.Contains(name, "/") {
		name = "default/" + name
	}
	return Target{rpc.Pod, name}
}

// Node is a node's namespace.
func Node(name string) Target { return Target{rpc.Node, name} }

// Outside is the namespace of the client on the underlay that is no cluster member.
func Outside() Target { return Target{rpc.Outside, "outside"} }

// Stdio has the standard streams of a command; a nil stream is /dev/null. With Terminal, In must be a terminal. The
// command then gets a terminal of its own, which is connected to In and Out.
type Stdio struct {
	In, Out, Err *os.File
	Terminal     bool
	// Signals, if set, are forwarded to the command.
	Signals <-chan os.Signal
}

// Command is what to run.
type Command struct {
	Argv []string
	// Env is added to the environment of the target's processes.
	Env []string
	Dir string
}

func (cmd Command) at(where Target) *rpc.Exec {
	return &rpc.Exec{Kind: where.kind, Name: where.name, Argv: cmd.Argv, Env: cmd.Env, Dir: cmd.Dir}
}

// Exec runs a command and returns its exit code; 128+n when signal n ended it. The error says why the command could not
// be run. When ctx ends the command is ended.
func (c *Client) Exec(ctx context.Context, where Target, cmd Command, s Stdio) (int, error) {
	if s.Terminal {
		return c.execTerminal(ctx, where, cmd, s)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	fds := make([]int, 0, 3)
	defer func() { fdpass.CloseAll(fds) }()
	for _, f := range []*os.File{s.In, s.Out, s.Err} {
		if f == nil {
			f = null
		}
		fd, err := blocking(f)
		if err != nil {
			return 0, err
		}
		fds = append(fds, fd)
	}
	return c.exec(ctx, cmd.at(where), s.Signals, fds)
}

// blocking duplicates a descriptor and makes it blocking. Go makes pipes and terminals non-blocking, duplicates share
// this mode, and a shell's read takes EAGAIN for an error.
func blocking(f *os.File) (int, error) {
	fd, err := fdpass.Dup(f)
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make %s blocking: %w", f.Name(), err)
	}
	return fd, nil
}

// Output runs a command and returns what it wrote to stdout and to stderr.
func (c *Client) Output(ctx context.Context, where Target, argv ...string) (stdout, stderr string, code int, err error) {
	var files [2]*os.File
	var texts [2]chan string
	for i := range files {
		r, w, err := os.Pipe()
		if err != nil {
			return "", "", 0, err
		}
		defer r.Close()
		defer w.Close()
		files[i], texts[i] = w, make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(r) // reads until the other side is closed
			texts[i] <- string(b)
		}()
	}
	code, err = c.Exec(ctx, where, Command{Argv: argv}, Stdio{Out: files[0], Err: files[1]})
	for _, f := range files {
		f.Close()
	}
	return <-texts[0], <-texts[1], code, err
}

func (c *Client) exec(ctx context.Context, request *rpc.Exec, signals <-chan os.Signal, fds []int) (int, error) {
	conn, err := fdpass.Dial(ctx, rpc.Socket(c.Dir))
	if err != nil {
		return 0, fmt.Errorf("connect to lab %s: %w", c.Name, err)
	}
	defer conn.Close()
	if err := conn.Send(rpc.Request{Op: rpc.OpExec, Exec: request}, fds...); err != nil {
		return 0, err
	}
	type result struct {
		code int
		err  error
	}
	results := make(chan result, 1)
	go func() {
		code, err := awaitExit(conn)
		results <- result{code, err}
	}()
	for {
		select {
		case r := <-results:
			return r.code, r.err
		case s, ok := <-signals:
			if n, isNumber := s.(syscall.Signal); ok && isNumber {
				_ = conn.Send(rpc.Signal{Number: int(n)}) // the command may just have ended
			} else if !ok {
				signals = nil
			}
		case <-ctx.Done():
			conn.Close() // which ends the command
			<-results
			return 0, ctx.Err()
		}
	}
}

func awaitExit(conn *fdpass.Conn) (int, error) {
	for {
		var a rpc.Answer
		if _, err := conn.Receive(&a); err != nil {
			return 0, fmt.Errorf("the lab went away: %w", err)
		}
		if a.Error != "" {
			return 0, errors.New(a.Error)
		}
		if a.Exit != nil {
			return *a.Exit, nil
		}
	}
}

// execTerminal gives the command a terminal of its own and connects it with the caller's, which is in raw mode
// meanwhile. The command's terminal interprets all input, ^C included.
func (c *Client) execTerminal(ctx context.Context, where Target, cmd Command, s Stdio) (int, error) {
	ptmx, tty, err := pty.Open()
	if err != nil {
		return 0, fmt.Errorf("open a terminal: %w", err)
	}
	defer ptmx.Close()
	fd, err := blocking(tty)
	tty.Close()
	if err != nil {
		return 0, err
	}
	_ = pty.InheritSize(s.In, ptmx) // a terminal without size is still one
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-resized:
				_ = pty.InheritSize(s.In, ptmx)
			case <-done:
				return
			}
		}
	}()
	old, err := term.MakeRaw(int(s.In.Fd()))
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("%s is no terminal: %w", s.In.Name(), err)
	}
	defer func() { _ = term.Restore(int(s.In.Fd()), old) }()
	go func() { _, _ = io.Copy(ptmx, s.In) }() // blocked in its read until this process ends
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(s.Out, ptmx) // ends with EIO when the last descriptor of the other side is closed
	}()
	if name := os.Getenv("TERM"); name != "" {
		cmd.Env = append([]string{"TERM=" + name}, cmd.Env...)
	}
	code, err := c.execOwning(ctx, where, cmd, s.Signals, fd)
	if err != nil {
		return 0, err
	}
	select {
	case <-copied:
	case <-time.After(lingering): // a background process keeps the terminal open
	}
	return code, nil
}

// lingering limits how long the last output of a command on a terminal may take.
const lingering = 500 * time.Millisecond

// execOwning is exec with one terminal, which it closes. A descriptor left open here would keep the terminal alive.
func (c *Client) execOwning(ctx context.Context, where Target, cmd Command, signals <-chan os.Signal, fd int) (int, error) {
	defer unix.Close(fd)
	request := cmd.at(where)
	request.Terminal = true
	return c.exec(ctx, request, signals, []int{fd})
}
