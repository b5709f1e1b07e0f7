package kubelet

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// How long restarts wait. Kubernetes begins with 10 s and ends with 5 min, which is too long for a person at a lab.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// lastSandboxRetry is shorter: a sandbox waits for the agent, which comes back soon.
	lastSandboxRetry = time.Second
	// steady is how long a container must run for the waits to begin again with firstRetry.
	steady = 10 * time.Second
)

// startFailed is the exit code of a command that could not be started, as in shells.
const startFailed = 127

// container runs one container of a worker over all its restarts.
type container struct {
	*worker
	sb   Sandbox
	spec *Container
	at   int // in Status.Containers
}

func (w *worker) newContainer(sb Sandbox, spec *Container, at int) *container {
	return &container{worker: w, sb: sb, spec: spec, at: at}
}

func (c *container) update(change func(*ContainerStatus)) {
	c.worker.update(func(s *Status) { change(&s.Containers[c.at]) })
}

// loop runs the container until it must not be started again. It reports whether the last run ended with exit code 0.
func (c *container) loop(policy RestartPolicy) bool {
	wait := firstRetry
	for {
		began := time.Now()
		code, message := c.once()
		again := c.ctx.Err() == nil && (policy == Always || policy == OnFailure && code != 0)
		c.update(func(s *ContainerStatus) {
			s.Running, s.Ready, s.PID = false, false, 0
			s.Exited, s.ExitCode, s.Message, s.Retry = true, code, message, again
		})
		if !again {
			return code == 0
		}
		if time.Since(began) >= steady {
			wait = firstRetry
		}
		c.opts.Log.Info("container ended, will be started again", "pod", c.pod.Key(), "container", c.spec.Name,
			"code", code, "in", wait, "reason", message)
		if !sleep(c.ctx, wait) {
			c.update(func(s *ContainerStatus) { s.Retry = false })
			return false
		}
		wait = min(2*wait, lastRetry)
		c.update(func(s *ContainerStatus) { s.Restarts++ })
	}
}

// once runs the command from its start to its end. It returns the exit code and a message about it.
func (c *container) once() (code int, message string) {
	p, err := c.sb.Start(Command{Argv: c.spec.Argv, Env: c.spec.Env, Dir: c.spec.Dir})
	if err != nil {
		return startFailed, err.Error()
	}
	c.update(func(s *ContainerStatus) {
		s.Running, s.PID, s.Started, s.Retry = true, p.PID(), time.Now(), false
		s.Ready, s.Message = c.spec.Readiness == nil, ""
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code = p.Wait()
		// This comes before the probes are stopped, since endpoints depend on it.
		c.update(func(s *ContainerStatus) { s.Running, s.Ready, s.PID = false, false, 0 })
	}()
	probing, stopProbes := context.WithCancel(c.ctx)
	sick := make(chan string, 1)
	var probes sync.WaitGroup
	if c.spec.Readiness != nil {
		probes.Go(func() { c.readiness(probing, p.PID()) })
	}
	if c.spec.Liveness != nil {
		probes.Go(func() { c.liveness(probing, sick) })
	}
	select {
	case <-ended:
	case <-c.ctx.Done():
		c.terminate(p, ended)
	case message = <-sick:
		c.terminate(p, ended)
	}
	stopProbes()
	probes.Wait()
	if message == "" && code != 0 && c.ctx.Err() == nil {
		message = fmt.Sprintf("ended with exit code %d", code)
	}
	return code, message
}

// terminate asks the process to end, and kills it after the pod's grace.
func (c *container) terminate(p Process, ended <-chan struct{}) {
	_ = p.Signal(syscall.SIGTERM) // the process may have ended by itself
	t := time.NewTimer(c.pod.Grace)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		_ = p.Signal(syscall.SIGKILL)
		<-ended
	}
}

func (c *container) readiness(ctx context.Context, pid int) {
	c.watch(ctx, c.spec.Readiness, true, func(ok bool, err error) bool {
		c.update(func(s *ContainerStatus) {
			if s.PID != pid {
				return // the container has ended
			}
			s.Ready, s.Message = ok, ""
			if err != nil {
				s.Message = "not ready: " + err.Error()
			}
		})
		return true
	})
}

func (c *container) liveness(ctx context.Context, sick chan<- string) {
	c.watch(ctx, c.spec.Liveness, false, func(ok bool, err error) bool {
		if !ok {
			sick <- "liveness probe failed: " + err.Error()
		}
		return ok
	})
}
