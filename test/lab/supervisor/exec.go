package supervisor

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/test/lab/process"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/lab/shim"
)

// exec runs a command for a client, with the descriptors that came with the request, and tells how the command ends.
// The command is ended when its client goes away.
func (l *lab) exec(ctx context.Context, c *fdpass.Conn, r *rpc.Exec, files []*os.File) {
	p, err := l.startExec(r, files)
	if err != nil {
		_ = c.Answer(rpc.Answer{Error: err.Error()})
		return
	}
	// The command has duplicates. The originals would keep a pipe open that the command has closed.
	for _, f := range files {
		f.Close()
	}
	ended := make(chan struct{})
	var code int
	go func() {
		defer close(ended)
		code = p.Wait()
	}()
	_ = c.Answer(rpc.Answer{PID: p.PID()})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var s rpc.Signal
			fds, err := c.Receive(&s)
			fdpass.CloseAll(fds)
			if err != nil {
				return
			}
			_ = p.Signal(syscall.Signal(s.Number)) // the command may have ended
		}
	}()
	select {
	case <-ended:
		_ = c.Answer(rpc.Answer{Exit: &code})
	case <-gone:
		p.HangUp(ended)
	case <-ctx.Done():
		p.HangUp(ended)
	}
	c.Close() // ends the goroutine above
	<-gone
}

func (l *lab) startExec(r *rpc.Exec, files []*os.File) (*process.Process, error) {
	if len(r.Argv) == 0 {
		return nil, fmt.Errorf("no command: expected one after --")
	}
	var streams process.Stdio
	switch {
	case r.Terminal && len(files) == 1:
		streams = process.Stdio{In: files[0], Out: files[0], Err: files[0], Terminal: true}
	case !r.Terminal && len(files) == 3:
		streams = process.Stdio{In: files[0], Out: files[1], Err: files[2]}
	default:
		return nil, fmt.Errorf("expected stdin, stdout and stderr, or a terminal; got %d descriptors", len(files))
	}
	at, env, err := l.target(r)
	if err != nil {
		return nil, err
	}
	return process.Start(l.cfg.Exe, at, shim.Spec{Argv: r.Argv, Env: append(slices.Clone(env), r.Env...), Dir: r.Dir}, streams)
}

// target returns where a command is to run, and with which environment.
func (l *lab) target(r *rpc.Exec) (process.Place, []string, error) {
	switch r.Kind {
	case rpc.Outside:
		return l.outside, l.cfg.Env, nil
	case rpc.Node:
		if n := l.node(r.Name); n != nil {
			return n.place, l.cfg.Env, nil
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		var names []string
		for _, n := range l.cluster.Nodes {
			names = append(names, n.Name)
		}
		return process.Place{}, nil, fmt.Errorf("there is no node %q: the nodes are %s", r.Name, strings.Join(names, ", "))
	case rpc.Pod:
		s, _ := l.kubelet.Sandbox(r.Name).(*sandbox)
		if s != nil {
			return s.place, s.pod.Containers[0].Env, nil
		}
		return process.Place{}, nil, l.noPod(r.Name)
	}
	return process.Place{}, nil, fmt.Errorf("unknown kind of target %q", r.Kind)
}

// noPod returns an error that says why there is no sandbox to run in.
func (l *lab) noPod(key string) error {
	st := l.status()
	var keys []string
	for _, p := range st.Pods {
		if p.Key() == key {
			return fmt.Errorf("pod %s is not there yet, it is %s: wait for it with 'tapestry-lab up --wait' (%s)", key, p.Phase, cmp.Or(p.Message, "being started"))
		}
		keys = append(keys, p.Key())
	}
	return fmt.Errorf("there is no pod %q: the pods are %s", key, strings.Join(keys, ", "))
}
