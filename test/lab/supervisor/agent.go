package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/shim"
)

const (
	// An agent that ends is started again at once; one that ends before it was ready waits longer and longer.
	firstAgentRetry = 50 * time.Millisecond
	lastAgentRetry  = 5 * time.Second
	// How often an agent is asked how it is, while it starts and after.
	eagerAsk  = 20 * time.Millisecond
	steadyAsk = time.Second
)

// agent is the agent process of a node, over all its lives.
type agent struct {
	lab  *lab
	node *node
	ctx  context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu       sync.Mutex
	process  *process // nil while it is down
	stayDown bool
	wake     chan struct{} // closed when stayDown ends
	restarts int
	ready    bool
	problems []string
}

func newAgent(l *lab, n *node) *agent {
	a := &agent{lab: l, node: n, wake: make(chan struct{})}
	a.ctx, a.end = context.WithCancel(context.Background())
	return a
}

// start lets the agent live until close.
func (a *agent) start() {
	a.done.Go(a.live)
	a.done.Go(a.ask)
}

// close ends the agent for good.
func (a *agent) close() {
	a.end()
	_ = a.signal(syscall.SIGKILL, true) // down is fine
	a.done.Wait()
}

// signal sends the agent a signal. With stayDown it is not started again when it ends.
func (a *agent) signal(s syscall.Signal, stayDown bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stayDown = a.stayDown || stayDown
	if a.process == nil {
		return fmt.Errorf("the agent of node %s is not running", a.node.Name)
	}
	return a.process.cmd.Process.Signal(s)
}

// resume starts an agent that was told to stay down.
func (a *agent) resume() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stayDown {
		a.stayDown = false
		close(a.wake)
		a.wake = make(chan struct{})
	}
}

func (a *agent) status() (state string, pid, restarts int, problems []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	state = "down"
	if a.process != nil {
		state, pid = "starting", a.process.PID()
	}
	if a.ready {
		state = "ready"
	}
	return state, pid, a.restarts, slices.Clone(a.problems)
}

// live starts the agent again and again.
func (a *agent) live() {
	wait := firstAgentRetry
	for first := true; ; first = false {
		if !a.awaitUp() {
			return
		}
		if !first {
			a.mu.Lock()
			a.restarts++
			a.mu.Unlock()
		}
		code, err := a.once()
		if a.ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		worked := a.ready
		a.mu.Unlock()
		if err != nil {
			a.setReady(false, []string{err.Error()})
		} else {
			a.setReady(false, []string{fmt.Sprintf("the agent ended with exit code %d: see %s", code, rpc.AgentLog(a.lab.cfg.Dir, a.node.Name))})
		}
		if worked {
			wait = firstAgentRetry
			a.lab.log.Warn("agent ended", "node", a.node.Name, "code", code)
			continue
		}
		a.lab.log.Warn("agent ended before it was ready", "node", a.node.Name, "code", code, "err", err, "again in", wait)
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, lastAgentRetry)
	}
}

// awaitUp waits while the agent is to stay down; false when it is to end.
func (a *agent) awaitUp() bool {
	for {
		a.mu.Lock()
		down, wake := a.stayDown, a.wake
		a.mu.Unlock()
		if !down {
			return a.ctx.Err() == nil
		}
		select {
		case <-a.ctx.Done():
			return false
		case <-wake:
		}
	}
}

// once runs the agent to its end.
func (a *agent) once() (code int, err error) {
	log, err := os.OpenFile(rpc.AgentLog(a.lab.cfg.Dir, a.node.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	p, err := start(a.lab.cfg.Exe, a.node.place, shim.Spec{
		Argv: a.argv(), Env: a.lab.cfg.Env, DropCapabilities: !a.lab.cfg.KeepCapabilities,
	}, stdio{out: log, err: log})
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	a.process = p
	if a.ctx.Err() != nil {
		_ = p.Signal(syscall.SIGKILL)
	}
	a.mu.Unlock()
	a.lab.changed()
	code = p.Wait()
	a.mu.Lock()
	a.process = nil
	a.mu.Unlock()
	return code, nil
}

// argv is the agent's command line.
func (a *agent) argv() []string {
	argv := append(slices.Clone(a.lab.cfg.Agent),
		"--node", a.node.Name,
		"--manifests", rpc.ObjectsDir(a.lab.cfg.Dir),
		"--state", a.node.dir,
		"--keeper", a.node.socket("keeper"),
		"--attach-socket", a.node.socket("agent"),
	)
	for _, r := range resolverAddrs {
		argv = append(argv, "--dns-upstream", net.JoinHostPort(r.String(), "53"))
	}
	return argv
}

// ask keeps asking the agent how it is.
func (a *agent) ask() {
	client := cni.Client{Path: a.node.socket("agent")}
	for {
		pause := eagerAsk
		ctx, cancel := context.WithTimeout(a.ctx, 2*time.Second)
		st, err := client.Status(ctx)
		cancel()
		a.mu.Lock()
		up, ready := a.process != nil, a.ready
		a.mu.Unlock()
		switch {
		case up && err == nil:
			if st.Ready {
				pause = steadyAsk
			}
			a.setReady(st.Ready, st.Problems)
		case up && ready:
			a.setReady(false, []string{err.Error()})
		}
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (a *agent) setReady(ready bool, problems []string) {
	a.mu.Lock()
	same := a.ready == ready && slices.Equal(a.problems, problems)
	a.ready, a.problems = ready && a.process != nil, problems
	a.mu.Unlock()
	if !same {
		a.lab.changed()
	}
}
