package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab/process"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/underlay"
)

// How often an agent is asked for its state, while it starts and later.
const (
	eagerAsk  = 20 * time.Millisecond
	steadyAsk = time.Second
)

// agent is the agent process of a node, across restarts.
type agent struct {
	*process.Daemon
	lab  *lab
	node *node
	done sync.WaitGroup

	mu sync.Mutex
	// mu guards the fields below.
	product  string // the executable
	ready    int    // the process that was ready when it was asked last; 0: none
	served   bool   // it has been ready since it began
	problems []string
	// next becomes the next agent when this one ends, so that it starts as soon as in a container, where nothing has to
	// be prepared. nil: it is not prepared.
	next *process.Waiting
}

func newAgent(l *lab, n *node) *agent {
	a := &agent{lab: l, node: n, product: l.cfg.Product}
	a.Daemon = n.daemon(l, "agent", a.argv, process.Options{
		Start:  a.startNext,
		Worked: func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.served },
		Began:  func() { a.mu.Lock(); a.served = false; a.mu.Unlock(); l.changed() },
		Ended: func(why string) {
			a.setReady(0, []string{why + ": see " + rpc.NodeLog(l.cfg.Dir, n.Name, "agent")})
		},
	})
	return a
}

// start keeps the agent running until close.
func (a *agent) start() {
	a.Run()
	a.done.Go(a.ask)
}

// close ends the agent for good.
func (a *agent) close() {
	a.Close()
	a.done.Wait()
	if next := a.takeNext(); next != nil {
		next.Drop()
	}
}

// startNext starts an agent.
func (a *agent) startNext() (*process.Process, error) {
	if next := a.takeNext(); next != nil {
		if p, err := next.Become(a.lab.unprivileged(a.argv())); err == nil {
			return p, nil
		}
	}
	return a.node.start(a.lab, "agent", a.lab.unprivileged(a.argv()))
}

// takeNext returns the process that becomes the next agent, or nil.
func (a *agent) takeNext() *process.Waiting {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.next
	a.next = nil
	return next
}

// prepareNext begins the process that becomes the next agent. Without it the next agent takes a little longer. It is
// called by one goroutine.
func (a *agent) prepareNext() {
	a.mu.Lock()
	prepared := a.next != nil
	a.mu.Unlock()
	if prepared {
		return
	}
	next, err := a.node.begin(a.lab, "agent")
	if err != nil {
		a.lab.log.Warn("the next agent is not prepared", "node", a.node.Name, "err", err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = next
}

func (a *agent) status() (state string, pid, restarts int, problems []string) {
	pid, restarts = a.Running()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case pid == 0:
		state = "down"
	case a.ready == pid:
		state = "ready"
	default:
		state = "starting"
	}
	return state, pid, restarts, slices.Clone(a.problems)
}

// argv is the agent's command line.
func (a *agent) argv() []string {
	a.mu.Lock()
	product := a.product
	a.mu.Unlock()
	argv := []string{product, "agent",
		"--node", a.node.Name,
		"--manifests", rpc.ObjectsDir(a.lab.cfg.Dir),
		"--state", a.node.dir,
		"--keeper", a.node.socket("keeper"),
		"--attach-socket", a.node.socket("agent"),
		"--local-api", a.node.socket("api"),
	}
	if !a.lab.cfg.NoHostTAP {
		argv = append(argv, "--host-tap")
	}
	for _, r := range underlay.Resolvers() {
		argv = append(argv, "--dns-upstream", net.JoinHostPort(r.String(), "53"))
	}
	for _, kind := range a.lab.cfg.Announced {
		argv = append(argv, "--announce", kind)
	}
	if len(a.lab.cfg.Announced) > 0 {
		argv = append(argv, "--announce-socket", rpc.AnnounceSocket(a.lab.cfg.Dir, a.node.Name))
	}
	return append(argv, a.lab.cfg.AgentFlags...)
}

const (
	// upgradeTime limits how long the next agent may take until it is ready to take over the node.
	upgradeTime = 30 * time.Second
	upgradeTry  = 2 * time.Millisecond
)

// upgrade replaces the agent as an update of a cluster does: the next one, of another executable, starts beside the one
// that has the node, and when it is ready to take over, that one is told to end.
func (a *agent) upgrade(product string) error {
	prepared := a.node.dir + "/prepared"
	if err := os.Remove(prepared); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.mu.Lock()
	before := a.product
	a.product = product
	a.mu.Unlock()
	err := a.Succeed(func() (*process.Process, error) {
		return a.node.start(a.lab, "agent", a.lab.unprivileged(append(a.argv(), "--take-over", prepared)))
	}, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, upgradeTime)
		defer cancel()
		for tick := time.NewTicker(upgradeTry); ; {
			if _, err := os.Stat(prepared); err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("the next agent does not become ready to take over: %w: %s", ctx.Err(), a.node.said(a.lab, "agent"))
			case <-tick.C:
			}
		}
	})
	if err != nil {
		a.mu.Lock()
		a.product = before
		a.mu.Unlock()
	}
	return err
}

// askTime limits how long an agent may take to answer.
const askTime = 2 * time.Second

// askOnce asks the agent whether pods can be attached, and for its problems.
func (a *agent) askOnce() (ready bool, problems []string, err error) {
	ctx, cancel := context.WithTimeout(a.Context(), askTime)
	defer cancel()
	st, err := (&cni.Client{Path: a.node.socket("agent")}).Status(ctx)
	if err != nil {
		return false, nil, err
	}
	list, err := localapi.Problems.Ask(ctx, &localapi.Client{Path: a.node.socket("api")})
	for _, p := range list {
		problems = append(problems, p.Text)
	}
	return st.Ready, problems, err
}

// ask asks the agent for its state again and again.
func (a *agent) ask() {
	for {
		pause := eagerAsk
		asked, _ := a.Running()
		answered, problems, err := a.askOnce()
		pid, _ := a.Running()
		a.mu.Lock()
		was := a.ready == pid
		a.mu.Unlock()
		switch {
		case pid == 0 || pid != asked: // whoever has answered has ended
		case err == nil && answered:
			pause = steadyAsk
			if was { // now it has had time for what waited while it started
				a.prepareNext()
			}
			a.setReady(pid, problems)
		case err == nil:
			a.setReady(0, problems)
		case was:
			a.setReady(0, []string{err.Error()})
		}
		select {
		case <-a.Context().Done():
			return
		case <-time.After(pause):
		}
	}
}

// setReady notes which process is ready, 0 for none, and the agent's problems.
func (a *agent) setReady(pid int, problems []string) {
	a.mu.Lock()
	same := a.ready == pid && slices.Equal(a.problems, problems)
	a.ready, a.problems = pid, problems
	a.served = a.served || pid != 0
	a.mu.Unlock()
	if !same {
		a.lab.changed()
	}
}
