package plugin

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/userns"
)

// pluginVar in the environment makes the test program act as the plugin.
const pluginVar = "TAPESTRY_TEST_PLUGIN"

func TestMain(m *testing.M) {
	userns.Maybe()
	if os.Getenv(pluginVar) != "" {
		os.Exit(Main())
	}
	userns.Main(tests{m})
}

// tests removes, after the tests, the executable that they have built.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer os.Remove(builtPlugin())
	return t.M.Run()
}

// executable is the path of the plugin's executable. Where it cannot be built, the test program takes its place,
// which needs a second to start under the race detector.
var executable = sync.OnceValue(func() string {
	out, err := exec.Command("go", "build", "-o", builtPlugin(), "tapestry.dev/tapestry/cmd/tapestry-cni").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build the plugin: %v\n%s", err, out)
		return "/proc/self/exe"
	}
	return builtPlugin()
})

func builtPlugin() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("tapestry-cni-plugin-%d", os.Getpid()))
}

// agent assigns addresses and holds TAPs.
type agent struct {
	mu    sync.Mutex
	next  byte
	given map[string]cni.Pod // by container
	taps  map[string]*os.File
	adds  int
	// These set what the next call returns or does.
	err       error
	notReady  bool
	collected []cni.Attachment
	network   string
}

func (a *agent) Prepare(_ context.Context, p cni.Pod) (cni.Prepared, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return cni.Prepared{}, a.err
	}
	got, ok := a.given[p.ContainerID]
	if !ok {
		a.next++
		got = p
		if len(p.Addrs) == 0 {
			v6 := netip.MustParseAddr("fd00:1::").As16()
			v6[15] = a.next
			got.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, a.next}), netip.AddrFrom16(v6)}
		}
		got.MAC, got.MTU = fmt.Sprintf("0a:58:0a:01:00:%02x", a.next), 1400
		a.given[p.ContainerID] = got
	}
	return cni.Prepared{Pod: got, Attached: a.taps[p.ContainerID] != nil}, nil
}

func (a *agent) Add(_ context.Context, p cni.Pod, f *os.File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	if _, err := tap.Check(f); err != nil {
		return err
	}
	a.adds++
	if old := a.taps[p.ContainerID]; old != nil {
		old.Close()
	}
	a.given[p.ContainerID], a.taps[p.ContainerID] = p, f
	return nil
}

func (a *agent) Del(_ context.Context, p cni.Pod) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.taps[p.ContainerID]; f != nil {
		f.Close()
	}
	delete(a.taps, p.ContainerID)
	delete(a.given, p.ContainerID)
	return a.err
}

func (a *agent) Check(_ context.Context, p cni.Pod) (cni.Pod, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taps[p.ContainerID] == nil {
		return cni.Pod{}, cni.ErrNotAttached
	}
	return a.given[p.ContainerID], nil
}

func (a *agent) Collect(_ context.Context, network string, valid []cni.Attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.network, a.collected = network, valid
	return a.err
}

func (a *agent) Status(context.Context) (cni.Status, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cni.Status{Ready: !a.notReady, Reason: "no podCIDR yet"}, nil
}

// The methods below let tests look at the agent's state.

func (a *agent) got(container string) cni.Pod { return a.all()[container] }
func (a *agent) count() int                   { return len(a.all()) }

func (a *agent) all() map[string]cni.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.given)
}

func (a *agent) added() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.adds
}

// gc returns the arguments of the last Collect, once.
func (a *agent) gc() (network string, valid []cni.Attachment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	network, valid = a.network, a.collected
	a.network, a.collected = "", nil
	return network, valid
}

// fail makes the agent answer every request with err.
func (a *agent) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// world is a node with an agent and the plugin.
type world struct {
	*agent
	t      *testing.T
	socket string
	stop   func()
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), agent: &agent{given: map[string]cni.Pod{}, taps: map[string]*os.File{}}}
	w.start()
	t.Cleanup(func() {
		w.stop()
		for _, f := range w.taps {
			f.Close()
		}
	})
	return w
}

func (w *world) start() {
	w.t.Helper()
	ln, err := cni.Listen(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&cni.Server{Attacher: w.agent, Allocator: w.agent}).Serve(ctx, ln) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// pod is a sandbox of a pod.
type pod struct {
	*world
	ns        *tap.Namespace
	container string
	config    map[string]any
	args      string
	path      string // of the namespace
}

func (w *world) pod(container string) *pod {
	w.t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ns.Close() })
	p := &pod{world: w, ns: ns, container: container, path: path(ns), args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-" + container + ";K8S_POD_UID=u-" + container}
	p.config = map[string]any{"cniVersion": "1.1.0", "name": "net", "type": Name, "socket": w.socket, "patience": 0}
	return p
}

// path returns a path by which other processes reach a namespace.
func path(ns *tap.Namespace) string {
	rc, err := ns.File().SyscallConn()
	if err != nil {
		panic(err)
	}
	var s string
	if err := rc.Control(func(fd uintptr) { s = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }); err != nil {
		panic(err)
	}
	return s
}

func (p *pod) has(iface string) bool {
	p.t.Helper()
	h, err := p.ns.Handle()
	if err != nil {
		p.t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Name == iface {
			return true
		}
	}
	return false
}

// fails asserts an error with that code, whose text contains want.
func (p *pod) fails(command string, code uint, want string) {
	p.t.Helper()
	out, err := p.run(command)
	if err == nil || err.Code != code || !strings.Contains(err.Msg+" "+err.Details, want) {
		p.t.Errorf("%s: %s %+v; want code %d, %q", command, out, err, code, want)
	}
}

func (p *pod) works(command string) string {
	p.t.Helper()
	out, err := p.run(command)
	if err != nil {
		p.t.Errorf("%s: code %d, %s (%s)", command, err.Code, err.Msg, err.Details)
	}
	return out
}
