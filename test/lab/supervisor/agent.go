package supervisor

import (
	"context"
	"net"
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
	ready    bool
	problems []string
}

func newAgent(l *lab, n *node) *agent {
	a := &agent{lab: l, node: n}
	a.Daemon = n.daemon(l, "agent", a.argv, process.Options{
		Worked: func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.ready },
		Began:  l.changed,
		Ended: func(why string) {
			a.setReady(false, []string{why + ": see " + rpc.NodeLog(l.cfg.Dir, n.Name, "agent")})
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
}

func (a *agent) status() (state string, pid, restarts int, problems []string) {
	pid, restarts = a.Running()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ready:
		state = "ready"
	case pid != 0:
		state = "starting"
	default:
		state = "down"
	}
	return state, pid, restarts, slices.Clone(a.problems)
}

// argv is the agent's command line.
func (a *agent) argv() []string {
	argv := []string{a.lab.cfg.Product, "agent",
		"--node", a.node.Name,
		"--manifests", rpc.ObjectsDir(a.lab.cfg.Dir),
		"--state", a.node.dir,
		"--keeper", a.node.socket("keeper"),
		"--attach-socket", a.node.socket("agent"),
		"--local-api", a.node.socket("api"),
		"--host-tap",
	}
	for _, r := range underlay.Resolvers() {
		argv = append(argv, "--dns-upstream", net.JoinHostPort(r.String(), "53"))
	}
	return append(argv, a.lab.cfg.AgentFlags...)
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
		answered, problems, err := a.askOnce()
		pid, _ := a.Running()
		a.mu.Lock()
		ready := a.ready
		a.mu.Unlock()
		switch {
		case pid != 0 && err == nil:
			if answered {
				pause = steadyAsk
			}
			a.setReady(answered, problems)
		case pid != 0 && ready:
			a.setReady(false, []string{err.Error()})
		}
		select {
		case <-a.Context().Done():
			return
		case <-time.After(pause):
		}
	}
}

func (a *agent) setReady(ready bool, problems []string) {
	pid, _ := a.Running()
	a.mu.Lock()
	same := a.ready == ready && slices.Equal(a.problems, problems)
	a.ready, a.problems = ready && pid != 0, problems
	a.mu.Unlock()
	if !same {
		a.lab.changed()
	}
}
