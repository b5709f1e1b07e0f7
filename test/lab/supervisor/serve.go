package supervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/lab/plan"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// serve answers clients until stop is called or ctx is done.
func (l *lab) serve(ctx context.Context) (stop func(), err error) {
	ln, err := fdpass.Listen(rpc.Socket(l.cfg.Dir), 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		if err := fdpass.Serve(ctx, ln, fdpass.Options{Log: l.log}, l.converse); err != nil {
			l.log.Error("cannot answer clients any more", "err", err)
			l.quit()
		}
	})
	return func() { cancel(); done.Wait() }, nil
}

// converse carries out one client's request.
func (l *lab) converse(ctx context.Context, c *fdpass.Conn) {
	var r rpc.Request
	fds, err := c.Receive(&r)
	if err != nil {
		return
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "from client")
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if r.Op == rpc.OpExec && r.Exec != nil {
		l.exec(ctx, c, r.Exec, files)
		return
	}
	var answer rpc.Answer
	var out []int
	switch r.Op {
	case rpc.OpStatus:
		var f *os.File
		if f, err = l.statusFile(); err == nil {
			defer f.Close()
			out = []int{int(f.Fd())}
		}
	case rpc.OpWait:
		err = l.wait(ctx, c, r.Timeout)
	case rpc.OpImpair, rpc.OpUnimpair:
		err = l.doImpair(&r)
	case rpc.OpSignalAgent, rpc.OpStartAgent, rpc.OpUpgradeAgent:
		err = l.doAgent(&r)
	case rpc.OpDown:
		l.log.Info("a client ends the lab", "pid", c.Peer().PID)
		l.quit()
		return // the end of the connection is the answer
	default:
		err = fmt.Errorf("unknown request %q: is the lab of another version of tapestry?", r.Op)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	// A client that went away does not need its answer.
	if err := c.Answer(answer, out...); err != nil && !errors.Is(err, syscall.EPIPE) {
		l.log.Warn("a request was not answered", "request", r.Op, "err", err)
	}
}

func (l *lab) doAgent(r *rpc.Request) error {
	if r.Agent == nil {
		return fmt.Errorf("%s: no agent was named", r.Op)
	}
	n := l.node(r.Agent.Node)
	if n == nil || n.agent == nil {
		return fmt.Errorf("there is no node %q with an agent", r.Agent.Node)
	}
	if r.Op == rpc.OpUpgradeAgent {
		if err := n.agent.upgrade(cmp.Or(r.Agent.Product, l.cfg.Product)); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		return nil
	}
	daemon := n.agent.Daemon
	if r.Agent.Keeper {
		daemon = n.keeper
	}
	if r.Op == rpc.OpStartAgent {
		daemon.Resume()
		return nil
	}
	if err := daemon.Signal(syscall.Signal(r.Agent.Signal), r.Agent.StayDown); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// doImpair changes or ends the impairment of a path.
func (l *lab) doImpair(r *rpc.Request) error {
	if r.Impair == nil {
		return fmt.Errorf("%s: no pair was named", r.Op)
	}
	defer l.changed()
	if r.Op == rpc.OpUnimpair {
		return l.underlay.Unimpair(r.Impair.A, r.Impair.B)
	}
	var config impair.Config
	if err := json.Unmarshal(r.Impair.Config, &config); err != nil {
		return err
	}
	return l.underlay.Impair(r.Impair.A, r.Impair.B, config)
}

// wait returns when everything is ready. When the time is over or the client goes away, the error says what is not
// ready.
func (l *lab) wait(ctx context.Context, c *fdpass.Conn, timeout time.Duration) error {
	over := time.NewTimer(timeout)
	defer over.Stop()
	// Changes wake this loop. The ticker only serves to notice that the client is gone.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		l.mu.Lock()
		news := l.news
		l.mu.Unlock()
		st := l.status()
		missing := st.NotReady()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-news:
		case <-tick.C:
			if c.Gone() {
				return context.Canceled
			}
		case <-over.C:
			return fmt.Errorf("not ready after %s: %s", timeout, strings.Join(missing, "; "))
		case <-ctx.Done():
			return fmt.Errorf("the lab has ended")
		}
	}
}

// statusFile writes the status into a memory file.
func (l *lab) statusFile() (*os.File, error) {
	b, err := json.Marshal(l.status())
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("lab-status", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "lab-status")
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// status returns the status of the lab.
func (l *lab) status() rpc.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := rpc.Status{
		Name: l.cfg.Name, Dir: l.cfg.Dir, Files: l.cfg.Files, Product: l.cfg.Product, PID: os.Getpid(), MTU: l.cfg.MTU, Applied: l.applied,
		Underlay: l.cluster.Underlay.Prefixes, Outside: l.cluster.Underlay.Outside,
		Problems: slices.Clone(l.cluster.Warnings),
	}
	for _, s := range plan.ServiceList(l.shown) {
		st.Services = append(st.Services, rpc.ServiceStatus(s))
	}
	for _, i := range plan.IngressList(l.shown) {
		st.Ingresses = append(st.Ingresses, rpc.IngressStatus(i))
	}
	if l.failed != nil {
		st.ApplyError = l.failed.Error()
	}
	for _, want := range l.cluster.Nodes {
		st.Nodes = append(st.Nodes, l.nodeStatusLocked(want.Name))
	}
	for _, n := range st.Nodes {
		for _, p := range n.Problems {
			st.Problems = append(st.Problems, "node "+n.Name+": "+p)
		}
	}
	st.Pods = l.podStatusesLocked()
	for _, p := range st.Pods {
		if p.Message != "" {
			st.Problems = append(st.Problems, "pod "+p.Key()+": "+p.Message)
		}
	}
	st.Impairments = l.underlay.Impairments()
	return st
}

func (l *lab) nodeStatusLocked(name string) rpc.NodeStatus {
	st := rpc.NodeStatus{Name: name, Agent: "down", Dir: rpc.NodeDir(l.cfg.Dir, name)}
	n := l.nodes[name]
	if n == nil {
		st.Problems = []string{"could not be made: see " + rpc.LogFile(l.cfg.Dir)}
		return st
	}
	st.Addrs, st.PodCIDRs, st.External = n.Node.Addrs, n.PodCIDRs, n.External
	if n.agent == nil {
		st.Agent = "none"
		return st
	}
	st.Agent, st.PID, st.Restarts, st.Problems = n.agent.status()
	st.Socket = n.socket("api")
	return st
}

// podStatusesLocked lists the pods as the objects show them, with what only the kubelet knows.
func (l *lab) podStatusesLocked() []rpc.PodStatus {
	var out []rpc.PodStatus
	for _, pod := range plan.PodList(l.shown) {
		s := l.statuses[pod.UID]
		st := rpc.PodStatus{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Node, Addrs: pod.Addrs,
			Phase: "Pending", Ready: s.Ready, Terminating: s.Terminating, Started: s.Started, Message: s.Message,
		}
		if s.Phase != "" {
			st.Phase = string(s.Phase)
		}
		for _, c := range s.Containers {
			st.Restarts += c.Restarts
			if c.PID != 0 {
				st.PIDs = append(st.PIDs, c.PID)
			}
			if c.Message != "" && st.Message == "" {
				st.Message = "container " + c.Name + ": " + c.Message
			}
		}
		out = append(out, st)
	}
	return out
}
