package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/keeper"
)

// ahead is a source that is read before anybody follows it: while the agent waits for the node, which another agent
// has. Whoever follows begins with the last snapshot.
type ahead struct {
	source
	stop context.CancelFunc // ends the source's Run
	end  chan error         // of it

	mu sync.Mutex
	// mu guards what follows. It is held during deliver, so that snapshots come one after the other.
	deliver  func(kube.Objects, []kube.Problem) // nil until somebody follows
	objs     kube.Objects
	problems []kube.Problem
	known    bool
	ready    chan struct{} // closed when known
}

// lookAhead begins to read the source, until ctx ends.
func lookAhead(ctx context.Context, s source) *ahead {
	ctx, stop := context.WithCancel(ctx)
	a := &ahead{source: s, stop: stop, end: make(chan error, 1), ready: make(chan struct{})}
	go func() { a.end <- s.Run(ctx, a.take) }()
	return a
}

// take takes a snapshot of the source.
func (a *ahead) take(objs kube.Objects, problems []kube.Problem) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deliver != nil {
		a.deliver(objs, problems)
		return
	}
	a.objs, a.problems = objs, problems
	if !a.known {
		a.known = true
		close(a.ready)
	}
}

// Run delivers the last snapshot, if there is one, and then every further one, until ctx ends. It may be called once.
func (a *ahead) Run(ctx context.Context, deliver func(kube.Objects, []kube.Problem)) error {
	a.mu.Lock()
	a.deliver = deliver
	if a.known {
		a.deliver(a.objs, a.problems)
	}
	a.objs, a.problems = kube.Objects{}, nil
	a.mu.Unlock()
	defer context.AfterFunc(ctx, a.stop)()
	return <-a.end
}

// Prepared is "tapestry prepared", which a probe asks about the file of --take-over.
func Prepared() *cli.Command {
	return &cli.Command{
		Name:      "prepared",
		Usage:     "tell whether an agent is ready to take over its node",
		ArgsUsage: "FILE",
		Hidden:    true,
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return cli.Exit("prepared takes one argument, the file of the agent's --take-over", 2)
			}
			_, err := os.Stat(ctx.Args().First())
			return err
		},
	}
}

// hold gets the lease of the node. With --take-over it waits for the agent that has it, and for as much of the cluster
// as that agent may leave the node to. Then it makes the file that --take-over names, and once it has the lease at the
// latest.
func (a *agent) hold(ctx context.Context) (kept *keeper.Holdings, err error) {
	if a.takeOver == "" {
		return keeper.Hold(ctx, a.keeper, a.node, a.log)
	}
	if err := os.Remove(a.takeOver); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--take-over: %w", err)
	}
	mark := sync.OnceValue(func() error {
		f, err := os.OpenFile(a.takeOver, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("--take-over: %w", err)
		}
		return f.Close()
	})
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	leave, err := a.queue()
	if err != nil {
		return nil, err
	}
	defer leave()
	kept, err = keeper.HoldNext(ctx, a.keeper, a.node, a.log, func() {
		a.log.Info("waiting for the agent that has this node to end")
		go func() {
			select {
			case <-a.source.ready:
			case <-waiting.Done():
				return
			}
			if err := mark(); err != nil {
				a.log.Error("nobody is told that this agent is ready to take over", "err", err)
			}
		}()
	})
	if err != nil {
		return nil, err
	}
	if err := mark(); err != nil {
		kept.Close()
		return nil, err
	}
	return kept, nil
}
