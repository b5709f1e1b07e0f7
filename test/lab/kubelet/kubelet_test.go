package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// machine is a Sandbox in memory. Its processes end when the test says so.
type machine struct {
	t *testing.T

	mu        sync.Mutex
	refuse    error // error of the next sandboxes
	missing   map[string]bool
	deaf      bool // processes ignore SIGTERM
	listening bool
	running   map[*fakeProcess]bool
	started   []string
	sandboxes int // that are open
	pids      int
}

func (m *machine) sandbox(context.Context, *Pod) (Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return nil, m.refuse
	}
	m.sandboxes++
	return m, nil
}

func (m *machine) Start(c Command) (Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.missing[c.Argv[0]] {
		return nil, fmt.Errorf("command %q not found", c.Argv[0])
	}
	m.pids++
	p := &fakeProcess{m: m, pid: m.pids, argv: strings.Join(c.Argv, " "), end: make(chan int, 1)}
	m.running[p] = true
	m.started = append(m.started, p.argv)
	if code, ok := map[string]int{"true": 0, "false": 1}[c.Argv[0]]; ok {
		p.end <- code
	}
	return p, nil
}

func (m *machine) Dial(context.Context, string, string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.listening {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	b.Close()
	return a, nil
}

func (m *machine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sandboxes--
	if len(m.running) > 0 {
		m.t.Errorf("the sandbox is closed around %d processes", len(m.running))
	}
	return nil
}

func (m *machine) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// kill ends all running processes of a command.
func (m *machine) kill(argv string, code int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.running {
		if p.argv == argv {
			p.end <- code
		}
	}
}

type fakeProcess struct {
	m    *machine
	pid  int
	argv string
	end  chan int
}

func (p *fakeProcess) PID() int { return p.pid }

func (p *fakeProcess) Signal(s syscall.Signal) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if s == syscall.SIGTERM && p.m.deaf {
		return nil
	}
	select {
	case p.end <- 128 + int(s):
	default: // it has ended
	}
	return nil
}

func (p *fakeProcess) Wait() int {
	code := <-p.end
	p.m.set(func() { delete(p.m.running, p) })
	return code
}

// fixture is a Kubelet on a machine in a synctest bubble.
type fixture struct {
	*machine
	k *Kubelet

	mu     sync.Mutex
	latest map[string]Status
	seen   map[string][]Status
}

func run(t *testing.T, test func(*fixture)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{
			machine: &machine{t: t, missing: map[string]bool{}, running: map[*fakeProcess]bool{}},
			latest:  map[string]Status{}, seen: map[string][]Status{},
		}
		f.k = New(Options{Sandbox: f.sandbox, Log: slog.New(slog.DiscardHandler), Changed: func(uid string, s Status) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.latest[uid] = s
			f.seen[uid] = append(f.seen[uid], s)
		}})
		test(f)
		f.k.Drain()
		if f.sandboxes != 0 {
			t.Errorf("%d sandboxes are left", f.sandboxes)
		}
	})
}

// after lets time pass and returns the status of pod "p".
func (f *fixture) after(d time.Duration) Status {
	time.Sleep(d) // the bubble's time
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.latest["p"]
}

func pod(change func(*Pod)) *Pod {
	p := &Pod{Namespace: "default", Name: "p", UID: "p", Restart: Always, Grace: 30 * time.Second,
		Containers: []Container{{Name: "c", Argv: []string{"server"}}}}
	if change != nil {
		change(p)
	}
	return p
}

func TestRuns(t *testing.T) {
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(nil)})
		s := f.after(0)
		if s.Phase != Running || !s.Ready || s.Containers[0].PID == 0 || s.Message != "" {
			t.Errorf("%+v", s)
		}
		f.k.Set([]*Pod{pod(nil)})
		if f.after(0); len(f.started) != 1 {
			t.Errorf("started %q", f.started)
		}
		f.k.Set(nil)
		if s = f.after(0); !s.Gone || !s.Terminating || s.Ready {
			t.Errorf("%+v", s)
		}
	})
}

// The end of a container makes it unready in the same instant. It is started again after longer and longer pauses,
// which become short again after a long run.
func TestRestart(t *testing.T) {
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(nil)})
		f.after(0)
		for i, pause := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
			f.kill("server", 1)
			if s := f.after(0); s.Ready || s.Containers[0].Ready || s.Containers[0].Running || s.Containers[0].PID != 0 || s.Containers[0].ExitCode != 1 || s.Phase != Running {
				t.Fatalf("%d: %+v", i, s)
			}
			if s := f.after(pause*time.Millisecond - 1); s.Containers[0].Running {
				t.Fatalf("%d: it runs before %dms", i, pause)
			}
			if s := f.after(1); !s.Ready || s.Containers[0].Restarts != i+1 {
				t.Fatalf("%d: %+v", i, s)
			}
		}
		f.after(steady)
		f.kill("server", 0)
		if s := f.after(firstRetry); !s.Ready {
			t.Errorf("after a long life: %+v", s)
		}
	})
}

func TestPolicies(t *testing.T) {
	for _, test := range []struct {
		policy RestartPolicy
		code   int
		want   Phase
	}{
		{Always, 0, Running}, {Always, 1, Running}, {OnFailure, 0, Succeeded}, {OnFailure, 1, Running}, {Never, 0, Succeeded}, {Never, 1, Failed},
	} {
		run(t, func(f *fixture) {
			f.k.Set([]*Pod{pod(func(p *Pod) { p.Restart = test.policy })})
			f.after(0)
			f.kill("server", test.code)
			if s := f.after(time.Second); s.Phase != test.want || s.Ready != (test.want == Running) {
				t.Errorf("%s after code %d: %+v, want %s", test.policy, test.code, s, test.want)
			}
		})
	}
}

func TestCommandThatDoesNotExist(t *testing.T) {
	run(t, func(f *fixture) {
		f.missing["server"] = true
		f.k.Set([]*Pod{pod(nil)})
		s := f.after(0)
		if s.Ready || !strings.Contains(s.Containers[0].Message, `"server" not found`) || s.Containers[0].ExitCode != startFailed {
			t.Errorf("%+v", s)
		}
		f.set(func() { f.missing["server"] = false })
		if s = f.after(lastRetry); !s.Ready || s.Containers[0].Message != "" {
			t.Errorf("after it was installed: %+v", s)
		}
	})
}

func TestSandboxIsTriedAgain(t *testing.T) {
	run(t, func(f *fixture) {
		f.refuse = errors.New("the agent is down")
		f.k.Set([]*Pod{pod(nil)})
		if s := f.after(0); s.Phase != Pending || s.Message != "the agent is down" {
			t.Errorf("%+v", s)
		}
		f.after(time.Minute)
		f.set(func() { f.refuse = nil })
		if s := f.after(lastSandboxRetry); !s.Ready || s.Message != "" {
			t.Errorf("%+v", s)
		}
	})
}

// A pod that waits for something stops at once.
func TestStopWhileWaiting(t *testing.T) {
	for name, prepare := range map[string]func(*fixture, *Pod){
		"for the agent":    func(f *fixture, _ *Pod) { f.refuse = errors.New("down") },
		"for a restart":    func(f *fixture, _ *Pod) { f.missing["server"] = true },
		"for a correction": func(_ *fixture, p *Pod) { p.Problem = "no such ConfigMap" },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(f *fixture) {
				p := pod(nil)
				prepare(f, p)
				f.k.Set([]*Pod{p})
				if s := f.after(0); s.Ready || s.Gone {
					t.Errorf("%+v", s)
				}
				f.k.Set(nil)
				if s := f.after(0); !s.Gone {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestGrace(t *testing.T) {
	run(t, func(f *fixture) {
		f.deaf = true
		f.k.Set([]*Pod{pod(nil)})
		f.after(0)
		f.k.Set(nil)
		if s := f.after(30*time.Second - 1); s.Gone || !s.Terminating || !s.Ready {
			t.Errorf("before the grace is over: %+v", s)
		}
		if s := f.after(1); !s.Gone || s.Containers[0].ExitCode != 137 {
			t.Errorf("after the grace: %+v", s)
		}
	})
}

// The next incarnation of a name starts when nothing is left of the last one.
func TestIncarnations(t *testing.T) {
	run(t, func(f *fixture) {
		f.deaf = true
		old := pod(func(p *Pod) { p.UID = "old" })
		f.k.Set([]*Pod{old})
		f.after(0)
		f.k.Set([]*Pod{pod(nil)})
		if s := f.after(0); s.Phase != Pending || !strings.Contains(s.Message, "predecessor") {
			t.Errorf("%+v", s)
		}
		if s := f.after(30 * time.Second); !s.Ready {
			t.Errorf("%+v", s)
		}
		if got := f.seen["old"]; !got[len(got)-1].Gone {
			t.Errorf("the old one: %+v", got[len(got)-1])
		}
	})
}

func TestInitContainers(t *testing.T) {
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(func(p *Pod) {
			p.Init = []Container{{Name: "i1", Argv: []string{"init1"}}, {Name: "i2", Argv: []string{"true"}}}
		})})
		if s := f.after(0); s.Phase != Pending || s.Initialized {
			t.Errorf("%+v", s)
		}
		f.kill("init1", 1)
		f.after(firstRetry)
		f.kill("init1", 0)
		s := f.after(0)
		if s.Phase != Running || !s.Initialized || !s.Ready || s.Containers[0].Restarts != 1 {
			t.Errorf("%+v", s)
		}
		if got := strings.Join(f.started, " "); got != "init1 init1 true server" {
			t.Errorf("started %s", got)
		}
	})
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(func(p *Pod) {
			p.Restart = Never
			p.Init = []Container{{Name: "i", Argv: []string{"false"}}}
		})})
		if s := f.after(time.Hour); s.Phase != Failed || len(f.started) != 1 {
			t.Errorf("%+v, started %q", s, f.started)
		}
	})
}

func TestReadiness(t *testing.T) {
	probe := &Probe{TCP: mustAddrPort("10.0.0.1:80"), Period: 10 * time.Second, Timeout: time.Second, Success: 1, Failure: 2}
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(func(p *Pod) { p.Containers[0].Readiness = probe })})
		if s := f.after(0); s.Ready || s.Phase != Running {
			t.Errorf("%+v", s)
		}
		f.set(func() { f.listening = true })
		// The change is seen long before the first period is over.
		if s := f.after(2 * eager); !s.Ready || s.Containers[0].Message != "" {
			t.Errorf("%+v", s)
		}
		f.set(func() { f.listening = false })
		if s := f.after(10 * time.Second); !s.Ready {
			t.Errorf("one failure is not enough: %+v", s)
		}
		if s := f.after(10 * time.Second); s.Ready || !strings.Contains(s.Containers[0].Message, "not ready: connection refused") {
			t.Errorf("two failures are: %+v", s)
		}
		f.set(func() { f.listening = true })
		if s := f.after(10 * time.Second); !s.Ready {
			t.Errorf("%+v", s)
		}
		// A new process must pass its probes again.
		f.set(func() { f.listening = false })
		f.kill("server", 1)
		if s := f.after(time.Second); s.Ready || !s.Containers[0].Running {
			t.Errorf("%+v", s)
		}
	})
}

func TestLiveness(t *testing.T) {
	probe := &Probe{Exec: []string{"true"}, Period: time.Second, Timeout: time.Second, Success: 1, Failure: 3}
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(func(p *Pod) { p.Containers[0].Liveness = probe })})
		if s := f.after(time.Minute); !s.Ready || s.Containers[0].Restarts != 0 {
			t.Errorf("%+v", s)
		}
	})
	sick := *probe
	sick.Exec = []string{"false"}
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(func(p *Pod) { p.Containers[0].Liveness = &sick })})
		if s := f.after(2*time.Second - 1); s.Containers[0].Restarts != 0 || !s.Ready {
			t.Errorf("before the third failure: %+v", s)
		}
		if s := f.after(1); s.Ready || !strings.Contains(s.Containers[0].Message, "liveness probe failed") {
			t.Errorf("after it: %+v", s)
		}
		if s := f.after(firstRetry); !s.Ready || s.Containers[0].Restarts != 1 {
			t.Errorf("after the restart: %+v", s)
		}
	})
}

// Whoever depends on a container's readiness learns about its end before anything else.
func TestEndIsTheFirstNews(t *testing.T) {
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(nil)})
		f.after(0)
		n := len(f.seen["p"])
		f.kill("server", 1)
		f.after(0)
		if c := f.seen["p"][n].Containers[0]; c.Ready || c.Running {
			t.Errorf("%+v", f.seen["p"][n])
		}
	})
}

// A probe that hangs counts as failed.
func TestProbeTimeout(t *testing.T) {
	run(t, func(f *fixture) {
		f.k.Set([]*Pod{pod(func(p *Pod) {
			p.Containers[0].Readiness = &Probe{Exec: []string{"hang"}, Period: time.Second, Timeout: 3 * time.Second, Success: 1, Failure: 1}
		})})
		if s := f.after(3*time.Second + 1); s.Ready || !strings.Contains(s.Containers[0].Message, "no answer within 3s") {
			t.Errorf("%+v", s)
		}
	})
}

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
