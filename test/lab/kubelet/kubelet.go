package kubelet

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// Sandbox is the place of a pod: its namespaces, with its network attached.
type Sandbox interface {
	// Start starts a command. Its output goes to the pod's log.
	Start(Command) (Process, error)
	// Dial connects from inside of the pod.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Close ends what still runs inside and takes the sandbox down.
	Close() error
}

// Command is what to start in a Sandbox.
type Command struct {
	Argv, Env []string
	Dir       string
}

// Process is a started command, with all processes in its session.
type Process interface {
	PID() int
	// Signal sends a signal to the whole process group.
	Signal(syscall.Signal) error
	// Wait waits until the command ends and returns its exit code; 128+n for signal n. It may be called once.
	Wait() int
}

// Options are the options of a Kubelet.
type Options struct {
	// Sandbox makes a pod's sandbox. After a failure it is called again later.
	Sandbox func(context.Context, *Pod) (Sandbox, error)
	// Changed is told every change of a pod's status, in order. It must not block, and must not call the Kubelet.
	Changed func(uid string, s Status)
	Log     *slog.Logger
}

// Kubelet runs pods. Its methods may be called concurrently.
type Kubelet struct {
	opts Options

	mu      sync.Mutex
	workers map[string]*worker // by UID
	latest  map[string]*worker // by key: the next incarnation waits until this one has ended
}

// New returns a Kubelet without pods.
func New(opts Options) *Kubelet {
	return &Kubelet{opts: opts, workers: map[string]*worker{}, latest: map[string]*worker{}}
}

// Set makes exactly these pods run. It does not wait.
func (k *Kubelet) Set(pods []*Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wanted := map[string]bool{}
	for _, p := range pods {
		wanted[p.UID] = true
	}
	for uid, w := range k.workers {
		if !wanted[uid] {
			w.stop()
			delete(k.workers, uid)
		}
	}
	for _, p := range pods {
		if _, ok := k.workers[p.UID]; ok {
			continue
		}
		w := newWorker(k.opts, p)
		before := k.latest[p.Key()]
		k.workers[p.UID], k.latest[p.Key()] = w, w
		go w.run(before)
	}
}

// Sandbox returns the sandbox of a running pod by its key, or nil while there is none.
func (k *Kubelet) Sandbox(key string) Sandbox {
	k.mu.Lock()
	w := k.latest[key]
	k.mu.Unlock()
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sandbox
}

// Drain stops every pod and waits until nothing is left of them.
func (k *Kubelet) Drain() {
	k.Set(nil)
	k.mu.Lock()
	var all []*worker
	for _, w := range k.latest {
		all = append(all, w)
	}
	k.mu.Unlock()
	for _, w := range all {
		<-w.done
	}
}

// worker runs one incarnation of a pod.
type worker struct {
	opts Options
	pod  *Pod
	ctx  context.Context // done when the pod has to stop
	end  context.CancelFunc
	done chan struct{} // closed when nothing is left

	mu      sync.Mutex // guards what follows, and keeps the calls of Changed in order
	status  Status
	sandbox Sandbox
}

func newWorker(opts Options, pod *Pod) *worker {
	w := &worker{opts: opts, pod: pod, done: make(chan struct{})}
	w.ctx, w.end = context.WithCancel(context.Background())
	w.status.Phase = Pending
	for _, c := range pod.Init {
		w.status.Containers = append(w.status.Containers, ContainerStatus{Name: c.Name, Init: true})
	}
	for _, c := range pod.Containers {
		w.status.Containers = append(w.status.Containers, ContainerStatus{Name: c.Name})
	}
	return w
}

// stop tells the pod to end.
func (w *worker) stop() {
	w.update(func(s *Status) { s.Terminating, s.Stopped = true, time.Now() })
	w.end()
}

// update changes the status, and tells about it if the new status differs.
func (w *worker) update(change func(*Status)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.status
	w.status.Containers = append([]ContainerStatus(nil), before.Containers...)
	change(&w.status)
	w.status.derive(w.pod)
	if !w.status.equal(before) {
		w.opts.Changed(w.pod.UID, w.status)
	}
}

func (w *worker) run(before *worker) {
	defer close(w.done)
	if before != nil {
		w.update(func(s *Status) { s.Message = "waiting for its predecessor to end" })
		<-before.done
	}
	w.update(func(s *Status) { s.Started, s.Message = time.Now(), w.pod.Problem })
	if w.pod.Problem != "" {
		<-w.ctx.Done()
	} else if sb := w.makeSandbox(); sb != nil {
		w.runContainers(sb)
		<-w.ctx.Done()
		w.mu.Lock()
		w.sandbox = nil
		w.mu.Unlock()
		if err := sb.Close(); err != nil {
			w.opts.Log.Warn("pod left something behind", "pod", w.pod.Key(), "err", err)
		}
	}
	w.update(func(s *Status) { s.Gone = true })
}

// makeSandbox tries until it succeeds. It returns nil when the pod was told to stop first.
func (w *worker) makeSandbox() Sandbox {
	for wait := firstRetry; ; wait = min(2*wait, lastSandboxRetry) {
		sb, err := w.opts.Sandbox(w.ctx, w.pod)
		if err == nil {
			w.mu.Lock()
			w.sandbox = sb
			w.mu.Unlock()
			w.update(func(s *Status) { s.Message = "" })
			return sb
		}
		if w.ctx.Err() != nil {
			return nil
		}
		w.update(func(s *Status) { s.Message = err.Error() })
		if !sleep(w.ctx, wait) {
			return nil
		}
	}
}

// runContainers returns when no container runs any more.
func (w *worker) runContainers(sb Sandbox) {
	for i := range w.pod.Init {
		if !w.newContainer(sb, &w.pod.Init[i], i).loop(w.initRestart()) {
			return
		}
	}
	w.update(func(s *Status) { s.Initialized = true })
	var all sync.WaitGroup
	for i := range w.pod.Containers {
		c := w.newContainer(sb, &w.pod.Containers[i], len(w.pod.Init)+i)
		all.Go(func() { c.loop(w.pod.Restart) })
	}
	all.Wait()
}

// initRestart returns the restart policy of init containers. In a pod with policy Always they are restarted only until
// they succeed.
func (w *worker) initRestart() RestartPolicy {
	if w.pod.Restart == Never {
		return Never
	}
	return OnFailure
}

// sleep waits for d. It reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// derive computes the fields that follow from the containers.
func (s *Status) derive(pod *Pod) {
	ready, started, ended, failed := true, false, true, false
	for _, c := range s.Containers {
		over := c.Exited && !c.Running && !c.Retry
		if c.Init {
			failed = failed || over && c.ExitCode != 0
			continue
		}
		ready = ready && c.Running && c.Ready
		started = started || c.Running || c.Exited
		ended = ended && over
		failed = failed || over && c.ExitCode != 0
	}
	s.Ready = ready && s.Initialized
	switch {
	case !s.Initialized && failed && pod.Restart == Never, ended && failed:
		s.Phase = Failed
	case ended && s.Initialized:
		s.Phase = Succeeded
	case started:
		s.Phase = Running
	default:
		s.Phase = Pending
	}
}

func (s *Status) equal(t Status) bool {
	if s.Phase != t.Phase || s.Initialized != t.Initialized || s.Ready != t.Ready || s.Terminating != t.Terminating ||
		s.Gone != t.Gone || s.Started != t.Started || s.Stopped != t.Stopped || s.Message != t.Message ||
		len(s.Containers) != len(t.Containers) {
		return false
	}
	for i := range s.Containers {
		if s.Containers[i] != t.Containers[i] {
			return false
		}
	}
	return true
}
