package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

const nodeManifest = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: 172.31.0.1}]}
`

// machine is a node. Its keeper runs in this process, its agent in a process of its own, and the test acts as the
// container runtime.
type machine struct {
	t      testing.TB
	dir    string
	keeper *keeper.Keeper
	client *cni.Client
	api    *localapi.Client
	exe    string   // the CNI plugin
	source []string // the agent's flags about the source of objects
	stderr io.Writer
	// supervised is set when the agent's process has a supervisor; agent is the supervisor then.
	supervised bool
	takeOver   string // the file of --take-over; "": without

	mu    sync.Mutex
	agent *exec.Cmd
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	n := &machine{t: t, dir: t.TempDir(), keeper: keeper.New(), exe: buildPlugin(), stderr: os.Stderr}
	n.source = []string{"--manifests", filepath.Join(n.dir, "manifests")}
	n.client = &cni.Client{Path: filepath.Join(n.dir, "agent.sock")}
	n.api = &localapi.Client{Path: filepath.Join(n.dir, "api.sock")}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: netlink.NewIPNet(netip.MustParseAddr("172.31.0.1").AsSlice())}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"manifests", "state"} {
		if err := os.Mkdir(filepath.Join(n.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n.setRange("10.244.1.0/24", "fd00:10:244:1::/64")
	ln, err := keeper.Listen(filepath.Join(n.dir, "keeper.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.keeper.Serve(ctx, ln, keeper.Options{}) }()
	t.Cleanup(func() {
		n.kill()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.keeper.Close()
	})
	return n
}

func (n *machine) setRange(cidrs ...string) {
	n.t.Helper()
	n.manifest("node.yaml", fmt.Sprintf(nodeManifest, `"`+strings.Join(cidrs, `", "`)+`"`))
}

// manifest replaces a file in one step.
func (n *machine) manifest(name, content string) {
	n.t.Helper()
	tmp := filepath.Join(n.dir, name)
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(n.dir, "manifests", name)); err != nil {
		n.t.Fatal(err)
	}
}

// start starts an agent and does not wait until it is ready.
func (n *machine) start() {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	args, role := append([]string{"--node", "n1", "--state", filepath.Join(n.dir, "state"),
		"--keeper", filepath.Join(n.dir, "keeper.sock"), "--attach-socket", n.client.Path, "--local-api", n.api.Path, "--flows", "4096",
		"--underlay-mtu", "1500", "--dns-upstream", "127.0.0.1", "--health-address", "", "--metrics-address", "", "--ingress-http", "", "--ingress-https", ""}, n.source...), "agent"
	if n.takeOver != "" {
		args = append(args, "--take-over", n.takeOver)
	}
	if n.supervised {
		args, role = append([]string{"supervise", "agent"}, args...), "supervised"
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stdout, cmd.Stderr = n.stderr, n.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.agent = cmd
}

// kill kills the agent with SIGKILL.
func (n *machine) kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent != nil {
		_ = n.agent.Process.Kill()
		_ = n.agent.Wait()
		n.agent = nil
	}
}

// ended waits until the agent has ended by itself.
func (n *machine) ended() {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	gone := time.AfterFunc(await.Patience, func() { _ = n.agent.Process.Signal(syscall.SIGQUIT) })
	defer gone.Stop()
	_ = n.agent.Wait()
	n.agent = nil
}

// ready waits until the agent is ready, and its local API as well.
func (n *machine) ready() {
	n.t.Helper()
	n.until("the agent is ready", func() bool {
		s, err := n.client.Status(n.t.Context())
		if err == nil && s.Ready {
			_, err = n.api.Node(n.t.Context())
		}
		return err == nil && s.Ready
	})
}

func (n *machine) until(what string, cond func() bool) {
	n.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(await.Patience); !cond(); <-tick.C {
		if time.Now().After(end) {
			n.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// sandbox is the sandbox of a pod.
type sandbox struct {
	*machine
	ns        *tap.Namespace
	container string
	pod       string
	prev      string // the result of ADD
	extra     string // more fields of the network configuration, each after a comma
}

func (n *machine) sandbox(container, pod string) *sandbox {
	n.t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { ns.Close() })
	return &sandbox{machine: n, ns: ns, container: container, pod: pod}
}

func (s *sandbox) path() string {
	rc, err := s.ns.File().SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	var path string
	if err := rc.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// pluginError is an error in the plugin's output.
type pluginError struct {
	Code         uint
	Msg, Details string
}

func (e *pluginError) Error() string {
	return fmt.Sprintf("code %d: %s (%s)", e.Code, e.Msg, e.Details)
}

// run runs the plugin as a container runtime does.
func (s *sandbox) run(command string) error {
	prev := ""
	if s.prev != "" && command != "ADD" {
		prev = `,"prevResult":` + s.prev
	}
	cmd := exec.Command(s.exe)
	cmd.Env = append(os.Environ(), roleVar+"=plugin", "CNI_COMMAND="+command, "CNI_PATH=/opt/cni/bin",
		"CNI_CONTAINERID="+s.container, "CNI_NETNS="+s.path(), "CNI_IFNAME=eth0", "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME="+s.pod)
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","name":"net","type":"tapestry-cni","socket":"` + s.client.Path + `"` + s.extra + prev + `}`)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		var e pluginError
		if jerr := json.Unmarshal(out.Bytes(), &e); jerr != nil {
			return fmt.Errorf("%s: %w with %q", command, err, out.String())
		}
		return &e
	}
	if command == "ADD" && err == nil {
		s.prev = out.String()
	}
	return err
}

func (s *sandbox) works(command string) {
	s.t.Helper()
	if err := s.run(command); err != nil {
		s.t.Errorf("%s of %s: %v", command, s.container, err)
	}
}

// addrs returns the addresses in the result of ADD.
func (s *sandbox) addrs() string {
	s.t.Helper()
	var r struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal([]byte(s.prev), &r); err != nil {
		s.t.Fatal(err)
	}
	var list []string
	for _, ip := range r.IPs {
		list = append(list, ip.Address)
	}
	return strings.Join(list, " ")
}

// counters returns the agent's counters.
func (n *machine) counters() counter.List {
	n.t.Helper()
	list, err := n.api.Counters(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// problems returns the problems that the agent reports, one per line.
func (n *machine) problems() string {
	n.t.Helper()
	list, err := localapi.Problems.Ask(n.t.Context(), n.api)
	if err != nil {
		n.t.Fatal(err)
	}
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintln(&b, p.Text)
	}
	return b.String()
}

// has asserts how many pods the agent and the keeper hold, and how many addresses are leased.
func (n *machine) has(pods, leases int) {
	n.t.Helper()
	list := n.counters()
	if p, l := list.Get("tapestry_pods"), list.Get("tapestry_address_leases"); p != float64(pods) || l != float64(leases) {
		n.t.Errorf("the agent has %v pods and %v leases, want %d and %d", p, l, pods, leases)
	}
	if kept := n.kept(); kept != pods {
		n.t.Errorf("the keeper has %d pods, want %d", kept, pods)
	}
}

func (n *machine) kept() (count int) {
	n.t.Helper()
	items, err := n.keeper.List()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, it := range items {
		it.File.Close()
		if strings.HasPrefix(it.Key, pods.KeyPrefix) {
			count++
		}
	}
	return count
}

// buildPlugin builds the executable itself, because this test program takes ten times as long to start. If the build
// fails, this program is the plugin.
var buildPlugin = sync.OnceValue(func() string {
	if err := os.MkdirAll(pluginDir(), 0o700); err != nil {
		fmt.Fprintf(os.Stderr, "build the plugin: %v\n", err)
		return "/proc/self/exe"
	}
	exe := filepath.Join(pluginDir(), "tapestry-cni")
	out, err := exec.Command("go", "build", "-o", exe, "tapestry.dev/tapestry/cmd/tapestry-cni").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build the plugin: %v\n%s", err, out)
		return "/proc/self/exe"
	}
	return exe
})

// pluginDir is a directory of this process alone. In a namespace of its own its number is not, so that tests which ran
// at the same time removed one another's plugin.
var pluginDir = sync.OnceValue(func() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("tapestry-cni-%016x", rand.Uint64()))
})
