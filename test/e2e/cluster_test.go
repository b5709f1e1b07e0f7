package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/probe"
	"tapestry.dev/tapestry/test/product"
)

const (
	// patience limits how long a test waits for anything.
	patience = time.Minute
	// testTime limits how long a test on one lab may take.
	testTime = 90 * time.Second
)

const nodesYAML = `apiVersion: v1
kind: Node
metadata: {name: node-1}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
`

// podYAML returns a pod that runs the built-in server. The server may take long for an answer on a busy machine.
func podYAML(name, node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}, annotations: {tapestry.dev/probe-period: 50ms}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: server
    args: [--http, "8080", --tcp, "9000", --udp, "9000"]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
`, name, name, node)
}

// serviceYAML returns a NodePort Service for the pods of one app, or with port 0 a ClusterIP Service.
func serviceYAML(name, app string, port int) string {
	kind, node := "ClusterIP", ""
	if port != 0 {
		kind, node = "NodePort", fmt.Sprintf(", nodePort: %d", port)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: %s
  ipFamilyPolicy: PreferDualStack
  selector: {app: %s}
  ports: [{name: line, port: 81, targetPort: 9000%s}, {name: datagram, port: 81, targetPort: 9000, protocol: UDP%s}]
`, name, kind, app, node, node)
}

// baseYAML has two nodes, a client, a server on each node, and Services for both servers.
var baseYAML = nodesYAML + podYAML("client", "node-1") + podYAML("near", "node-1") + podYAML("far", "node-2") +
	serviceYAML("near", "near", 30081) + serviceYAML("far", "far", 30082)

// cluster is a lab under test with its file.
type cluster struct {
	*lab.Client
	file string
	ctx  context.Context
}

// up brings up a lab and waits until it is ready. The lab goes down when the test ends.
func up(t *testing.T, name, yaml string, agentFlags ...string) *cluster {
	t.Helper()
	return upFor(t, testTime, name, yaml, agentFlags...)
}

// upFor is up for a test that may take up to limit.
func upFor(t *testing.T, limit time.Duration, name, yaml string, agentFlags ...string) *cluster {
	t.Helper()
	return upWith(t, limit, lab.Options{Name: name, AgentFlags: agentFlags}, yaml)
}

// upWith is upFor with other settings of the lab.
func upWith(t *testing.T, limit time.Duration, o lab.Options, yaml string) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	c := &cluster{file: filepath.Join(t.TempDir(), o.Name+".yaml"), ctx: ctx}
	c.write(t, yaml)
	o.Files = append(o.Files, c.file)
	var err error
	if c.Client, err = lab.Up(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.down(t) })
	c.ready(t)
	return c
}

// down takes the lab down. If the test failed, down shows the logs of its processes. down fails the test when a process
// crashed or, under the race detector, had a race.
func (c *cluster) down(t *testing.T) {
	logs, _ := filepath.Glob(filepath.Join(c.Dir, "nodes", "*", "agent.log"))
	for _, path := range append(logs, rpc.LogFile(c.Dir)) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		for _, bad := range []string{"panic:", "fatal error:", "DATA RACE"} {
			if i := bytes.Index(b, []byte(bad)); i >= 0 {
				t.Errorf("%s:\n%s", path, b[i:min(len(b), i+8000)])
			}
		}
		if t.Failed() {
			t.Logf("%s:\n%s", path, b[max(0, len(b)-8000):])
		}
	}
	if err := c.Down(context.Background()); err != nil {
		t.Error(err)
	}
}

func (c *cluster) write(t *testing.T, yaml string) {
	t.Helper()
	if err := os.WriteFile(c.file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) ready(t *testing.T) {
	t.Helper()
	if err := c.Wait(c.ctx, patience); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) status(t *testing.T) *lab.Status {
	t.Helper()
	st, err := c.Status(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// until waits for a status that ok accepts.
func (c *cluster) until(t *testing.T, what string, ok func(*lab.Status) bool) *lab.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	var last *lab.Status
	if err := c.WaitFor(ctx, func(st *lab.Status) bool { last = st; return ok(st) }); err != nil {
		t.Fatalf("waiting until %s: %v; the last status was %+v", what, err, last)
	}
	return last
}

// edit applies another version of the file and waits until the lab is ready.
func (c *cluster) edit(t *testing.T, yaml string) *lab.Status {
	t.Helper()
	before := c.status(t)
	c.write(t, yaml)
	st := c.until(t, "the file is applied", func(st *lab.Status) bool {
		return st.Applied > before.Applied || st.ApplyError != "" && st.ApplyError != before.ApplyError
	})
	if st.ApplyError != "" {
		t.Fatal(st.ApplyError)
	}
	c.ready(t)
	return c.status(t)
}

// addr returns the address of a pod, a node or, with "svc/" before the name, a Service.
func (c *cluster) addr(t *testing.T, name string, v6 bool) netip.Addr {
	t.Helper()
	st := c.status(t)
	var all []netip.Addr
	for _, p := range st.Pods {
		if p.Name == name {
			all = p.Addrs
		}
	}
	for _, n := range st.Nodes {
		if n.Name == name {
			all = n.Addrs
		}
	}
	for _, s := range st.Services {
		if "svc/"+s.Name == name {
			for _, ip := range s.ClusterIPs {
				all = append(all, netip.MustParseAddr(ip))
			}
		}
	}
	if name == "outside" {
		all = st.Outside
	}
	for _, a := range all {
		if a.Is6() == v6 {
			return a
		}
	}
	t.Fatalf("%s has no address of the family asked for: %v", name, all)
	return netip.Addr{}
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func podOf(st *lab.Status, name string) *lab.PodStatus {
	for i := range st.Pods {
		if st.Pods[i].Name == name {
			return &st.Pods[i]
		}
	}
	return &lab.PodStatus{}
}

func nodeOf(st *lab.Status, name string) *lab.NodeStatus {
	for i := range st.Nodes {
		if st.Nodes[i].Name == name {
			return &st.Nodes[i]
		}
	}
	return &lab.NodeStatus{}
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// theProduct returns the executable that the agents run.
func theProduct(t *testing.T) string {
	t.Helper()
	exe, err := product.Find("")
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// run runs a helper, which must succeed, and returns the last line that it printed.
func (c *cluster) run(t *testing.T, where lab.Target, args ...string) string {
	t.Helper()
	stdout, stderr, code, err := c.Output(c.ctx, where, append([]string{self(t), "e2e-helper"}, args...)...)
	if err != nil || code != 0 {
		t.Fatalf("%v: exit status %d, %v: %s", args, code, err, stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	return lines[len(lines)-1]
}

// ask asks a server once.
func (c *cluster) ask(t *testing.T, where lab.Target, network, addr string, flags ...string) probe.Answer {
	t.Helper()
	argv := append([]string{self(t), "probe", "ask"}, flags...)
	stdout, stderr, code, err := c.Output(c.ctx, where, append(argv, network, addr)...)
	if err != nil || code != 0 {
		t.Fatalf("probe: exit status %d, %v: %s", code, err, stderr)
	}
	return decode[probe.Answer](t, stdout)
}

// reaches asks a server until the answer comes from that pod, since the agents learn about changes a moment after the
// lab.
func (c *cluster) reaches(t *testing.T, where lab.Target, network, addr, pod string) {
	t.Helper()
	var a probe.Answer
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	for a.Pod != pod || a.Error != "" {
		if ctx.Err() != nil {
			t.Fatalf("%s %s was answered by %q at last, %q; want it to be %s", network, addr, a.Pod, a.Error, pod)
		}
		a = c.ask(t, where, network, addr, "--timeout", "2s")
	}
}

// answered asks a server once. The answer must come from that pod.
func (c *cluster) answered(t *testing.T, where lab.Target, network, addr, pod string) {
	t.Helper()
	if a := c.ask(t, where, network, addr); a.Error != "" || a.Pod != pod {
		t.Errorf("%s %s was answered by %q, %q; want it to be %s", network, addr, a.Pod, a.Error, pod)
	}
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

// helper is a helper that runs during a test.
type helper struct {
	name    string
	stdin   *os.File
	started chan struct{}
	done    chan struct{} // closed when all output was read
	last    string
	stderr  bytes.Buffer
	code    chan error
}

// begin starts a helper and returns when the helper has begun. The helper ends with end, or with the test.
func (c *cluster) begin(t *testing.T, where lab.Target, args ...string) *helper {
	t.Helper()
	stdinR, stdinW := pipe(t)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	h := &helper{name: args[0], stdin: stdinW, started: make(chan struct{}), done: make(chan struct{}), code: make(chan error, 1)}
	go func() {
		code, err := c.Exec(c.ctx, where, lab.Command{Argv: append([]string{self(t), "e2e-helper"}, args...)}, lab.Stdio{In: stdinR, Out: outW, Err: errW})
		stdinR.Close()
		outW.Close()
		errW.Close()
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d", code)
		}
		h.code <- err
	}()
	go func() {
		defer close(h.done)
		defer outR.Close()
		defer errR.Close()
		for s := bufio.NewScanner(outR); s.Scan(); {
			if h.last = s.Text(); h.last == "started" {
				close(h.started)
			}
		}
		_, _ = h.stderr.ReadFrom(errR)
	}()
	t.Cleanup(func() {
		stdinW.Close()
		<-h.done
	})
	select {
	case <-h.started:
	case <-h.done:
		t.Fatalf("%v did not begin: %v: %s", args, <-h.code, &h.stderr)
	case <-c.ctx.Done():
		t.Fatal(c.ctx.Err())
	}
	return h
}

// end ends a helper and returns the last line that it printed.
func (h *helper) end(t *testing.T) string {
	t.Helper()
	h.stdin.Close()
	select {
	case <-h.done:
	case <-time.After(patience + 10*time.Second):
		t.Fatalf("%s does not end", h.name)
	}
	if err := <-h.code; err != nil {
		t.Fatalf("%s: %v: %s", h.name, err, &h.stderr)
	}
	return h.last
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// conversations are TCP connections that go on during a test.
type conversations struct{ *helper }

// talk keeps a connection to each address, with a round trip every few milliseconds.
func (c *cluster) talk(t *testing.T, where lab.Target, addrs ...string) conversations {
	t.Helper()
	return conversations{c.begin(t, where, append([]string{"talk"}, addrs...)...)}
}

// unharmed ends the conversations and returns the longest silence. None of them may have broken.
func (c conversations) unharmed(t *testing.T) time.Duration {
	t.Helper()
	var worst float64
	for addr, h := range decode[map[string]probe.Held](t, c.end(t)) {
		if h.Error != "" || h.Rounds < 2 {
			t.Errorf("the connection to %s broke after %d rounds: %s", addr, h.Rounds, h.Error)
		}
		worst = max(worst, h.WorstMillis)
	}
	return time.Duration(worst * float64(time.Millisecond))
}

// outcome is the result of a command.
type outcome struct {
	stdout, stderr string
	code           int
}

// tapestryLab runs a command line of tapestry-lab like a user.
func tapestryLab(t *testing.T, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, self(t), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// contains checks that a sentence contains all parts.
func contains(t *testing.T, sentence string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(sentence, p) {
			t.Errorf("%q does not say %q", sentence, p)
		}
	}
}

// problem reports whether the lab has a problem whose sentence contains all parts.
func problem(st *lab.Status, parts ...string) bool {
	return slices.ContainsFunc(st.Problems, func(p string) bool {
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(p, part) })
	})
}
