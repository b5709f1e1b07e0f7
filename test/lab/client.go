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

// answerTime limits how long a supervisor may take for a request that needs no waiting.
const answerTime = 10 * time.Second

// Client talks to a lab. Every call has a connection of its own, so the methods may be called concurrently.
type Client struct {
	Name string
	// Dir is the lab's folder.
	Dir string

	ended <-chan struct{} // closed with the process that Up started; nil after Dial
}

// The parts of a lab's status.
type (
	Status        = rpc.Status
	NodeStatus    = rpc.NodeStatus
	PodStatus     = rpc.PodStatus
	ServiceStatus = rpc.ServiceStatus
	IngressStatus = rpc.IngressStatus
)

// Status returns the lab's status.
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

// Wait waits until every agent and every pod is ready. When the timeout passes, the error says what is not ready.
func (c *Client) Wait(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+answerTime)
	defer cancel()
	var answer rpc.Answer
	fds, err := c.ask(ctx, rpc.Request{Op: rpc.OpWait, Timeout: timeout}, &answer)
	fdpass.CloseAll(fds)
	return err
}

// WaitFor waits until ok accepts the status. It asks every few milliseconds.
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

// Impair makes the path between two nodes, or between a node and "outside", as bad as cfg says.
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

// KillAgent sends a signal to a node's agent. When the agent ends the supervisor starts it again, unless stayDown is
// set.
func (c *Client) KillAgent(ctx context.Context, node string, s syscall.Signal, stayDown bool) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpSignalAgent, Agent: &rpc.Agent{Node: node, Signal: int(s), StayDown: stayDown}})
}

// KillKeeper sends a signal to a node's keeper. When the keeper ends the supervisor starts it again.
func (c *Client) KillKeeper(ctx context.Context, node string, s syscall.Signal) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpSignalAgent, Agent: &rpc.Agent{Node: node, Signal: int(s), Keeper: true}})
}

// StartAgent starts an agent that was told to stay down.
func (c *Client) StartAgent(ctx context.Context, node string) error {
	return c.do(ctx, rpc.Request{Op: rpc.OpStartAgent, Agent: &rpc.Agent{Node: node}})
}

// UpgradeAgent replaces a node's agent by one of another executable, as a rolling update does: that one starts beside
// the first, and takes over the node when it is ready. exe may be "" for the executable that the lab was brought up
// with. UpgradeAgent returns when the first was told to end.
func (c *Client) UpgradeAgent(ctx context.Context, node, exe string) error {
	var answer rpc.Answer
	fds, err := c.ask(ctx, rpc.Request{Op: rpc.OpUpgradeAgent, Agent: &rpc.Agent{Node: node, Product: exe}}, &answer)
	fdpass.CloseAll(fds)
	return err
}

// Down takes the lab down in whatever state the lab is, and returns when nothing is left.
func (c *Client) Down(ctx context.Context) error {
	fd, lives := openPID(c.Dir)
	if lives {
		defer unix.Close(fd)
		if err := c.askDown(ctx); err != nil {
			// The supervisor does not listen. The end of the lab's first process ends everything else.
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

// Ended returns a channel that is closed when the lab has ended. It is nil unless Up of this process started the lab.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// do makes a request. Its answer has no content except perhaps an error.
func (c *Client) do(ctx context.Context, r rpc.Request) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var answer rpc.Answer
	fds, err := c.ask(ctx, r, &answer)
	fdpass.CloseAll(fds)
	return err
}

// ask makes one request. The caller owns the descriptors that come with the answer.
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
