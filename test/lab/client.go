package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// answerTime is how long a supervisor may take for what it does at once.
const answerTime = 10 * time.Second

// Client speaks to a lab. Every call is a connection of its own, so its methods may be called concurrently.
type Client struct {
	Name string
	// Dir is the lab's folder.
	Dir string

	ended <-chan struct{} // of the process that Up started; nil after Dial
}

// What a lab tells of itself.
type (
	Status        = rpc.Status
	NodeStatus    = rpc.NodeStatus
	PodStatus     = rpc.PodStatus
	ServiceStatus = rpc.ServiceStatus
	IngressStatus = rpc.IngressStatus
)

// Status asks how the lab is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var answer rpc.Answer
	fds, err := c.ask(ctx, rpc.Request{Op: rpc.OpStatus}, &answer)
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		fdpass.CloseAll(fds)
		return nil, errors.New("the lab sent no status")
	}
	f := os.NewFile(uintptr(fds[0]), "status")
	defer f.Close()
	var st Status
	if err := json.NewDecoder(io.NewSectionReader(f, 0, 1<<40)).Decode(&st); err != nil {
		return nil, fmt.Errorf("read the status: %w", err)
	}
	return &st, nil
}

// Wait waits until every agent and every pod is ready. After the timeout the error says what is not.
func (c *Client) Wait(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+answerTime)
	defer cancel()
	var answer rpc.Answer
	fds, err := c.ask(ctx, rpc.Request{Op: rpc.OpWait, Timeout: timeout}, &answer)
	fdpass.CloseAll(fds)
	return err
}

// WaitFor waits until the status satisfies ok, looking again every few milliseconds.
func (c *Client) WaitFor(ctx context.Context, ok func(*Status) bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if ok(st) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", ctx.Err(), strings.Join(st.NotReady(), "; "))
		case <-tick.C:
		}
	}
}

// Impair makes the path between two nodes, or a node and "outside", as bad as cfg says.
func (c *Client) Impair(ctx context.Context, a, b string, cfg impair.Config) error {
	body, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	return c.do(ctx, rpc.Request{Op: rpc.OpImpair, Impair: &rpc.Impair{A: a, B: b, Config: body}})
}

// Unimpair restores the path.
func (c *Client) Unimpair(ctx context.Context, a, b string) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpUnimpair, Impair: &rpc.Impair{A: a, B: b}})
}

// KillAgent sends a node's agent a signal. The supervisor starts the agent again when it ends, unless stayDown.
func (c *Client) KillAgent(ctx context.Context, node string, s syscall.Signal, stayDown bool) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpSignalAgent, Agent: &rpc.Agent{Node: node, Signal: int(s), StayDown: stayDown}})
}

// KillKeeper sends a node's keeper a signal. The supervisor starts it again when it ends.
func (c *Client) KillKeeper(ctx context.Context, node string, s syscall.Signal) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpSignalAgent, Agent: &rpc.Agent{Node: node, Signal: int(s), Keeper: true}})
}

// StartAgent starts an agent that was told to stay down.
func (c *Client) StartAgent(ctx context.Context, node string) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpStartAgent, Agent: &rpc.Agent{Node: node}})
}

// Down takes the lab down, in whatever state it is, and returns when nothing is left.
func (c *Client) Down(ctx context.Context) error {
	fd, lives := openPID(c.Dir)
	if lives {
		defer unix.Close(fd)
		if err := c.askDown(ctx); err != nil {
			// It does not listen: its first process takes everything with it.
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end lab %s: %w", c.Name, err)
			}
		}
		grace, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		if err := awaitEnd(grace, fd); err != nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			if err := awaitEnd(ctx, fd); err != nil {
				return fmt.Errorf("end lab %s: %w", c.Name, err)
			}
		}
	}
	if c.ended != nil {
		<-c.ended
	}
	return os.RemoveAll(c.Dir)
}

func (c *Client) askDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := fdpass.Dial(ctx, rpc.Socket(c.Dir))
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Send(rpc.Request{Op: rpc.OpDown})
}

// Ended is closed when a lab that Up of this process started has ended. It is nil for others.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// do makes a request that is answered with nothing but perhaps an error.
func (c *Client) do(ctx context.Context, r rpc.Request) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var answer rpc.Answer
	fds, err := c.ask(ctx, r, &answer)
	fdpass.CloseAll(fds)
	return err
}

// ask makes one request. The descriptors that come with the answer are the caller's.
func (c *Client) ask(ctx context.Context, r rpc.Request, answer *rpc.Answer) ([]int, error) {
	conn, err := fdpass.Dial(ctx, rpc.Socket(c.Dir))
	if err != nil {
		return nil, fmt.Errorf("connect to lab %s: %w", c.Name, err)
	}
	defer conn.Close()
	fds, err := conn.Call(ctx, r, answer)
	if err != nil {
		return nil, fmt.Errorf("ask lab %s: %w", c.Name, err)
	}
	if answer.Error != "" {
		fdpass.CloseAll(fds)
		return nil, errors.New(answer.Error)
	}
	return fds, nil
}
