package kubelet

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// How long the waits are. Kubernetes begins with 10 s and ends with 5 min, which nobody at a lab's terminal wants.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// lastSandboxRetry is shorter: what a sandbox waits for is the agent, which comes back soon.
	lastSandboxRetry = time.Second
	// steady is how long a container has to run for its next end to count as the first.
	steady = 10 * time.Second
)

// startFailed is the exit code of a command that could not be started, as shells have it.
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

// loop runs the container until it has not to be started again, and reports whether its last end was a good one.
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

// once runs the command from its start to its end and returns the exit code and what there is to say of it.
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
		// At once, before the probes are stopped: endpoints hang on it.
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

// terminate asks the process to end, and after the pod's grace makes it.
func (c *container) terminate(p Process, ended <-chan struct{}) {
	_ = p.Signal(syscall.SIGTERM) // it may have ended by itself
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
				return // ended meanwhile
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
