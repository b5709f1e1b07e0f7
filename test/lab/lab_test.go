package lab

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/lab/rpc"
)

const nodes = `
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
`

const shell = `---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers: [{name: c, command: [sleep, "1000"], env: [{name: GREETING, value: "hello $(POD_NAME)"}]}]
`

const web = `---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}, annotations: {tapestry.dev/probe-period: 20ms}}
spec:
  nodeName: n2
  containers:
  - name: c
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`

func TestExec(t *testing.T) {
	l := up(t, nodes+shell)
	l.ready()
	for _, test := range []struct {
		name  string
		where Target
		argv  []string
		code  int
		out   string // a regular expression
	}{
		{"output", Pod("shell"), []string{"echo", "a b"}, 0, `^a b\n$`},
		{"exit code", Pod("default/shell"), []string{"sh", "-c", "exit 7"}, 7, `^$`},
		{"signal", Pod("shell"), []string{"sh", "-c", "kill -9 $$"}, 137, `^$`},
		{"environment", Pod("shell"), []string{"sh", "-c", "echo $GREETING $NODE_NAME"}, 0, `^hello shell n1\n$`},
		{"host name", Pod("shell"), []string{"hostname"}, 0, `^shell\n$`},
		{"resolv.conf", Pod("shell"), []string{"cat", "/etc/resolv.conf"}, 0,
			`^nameserver 10\.96\.0\.10\nsearch default\.svc\.cluster\.local svc\.cluster\.local cluster\.local\noptions ndots:5\n$`},
		{"hosts", Pod("shell"), []string{"cat", "/etc/hosts"}, 0, `\n10\.244\.1\.10\tshell\nfd00:10:244:1::a\tshell\n`},
		{"devices", Pod("shell"), []string{"cat", "/proc/net/dev"}, 0, `eth0:`},
		{"node's devices", Node("n1"), []string{"cat", "/proc/net/dev"}, 0, `(?s)eth0:.*tapestry0:|tapestry0:.*eth0:`},
		{"a resolver outside", Node("n2"), []string{program(t), "lookup", "outside.example"}, 0, `203\.0\.113\.10`},
		{"the outside itself", Outside(), []string{"cat", "/proc/net/dev"}, 0, `eth0:`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if out := l.run(test.where, test.code, test.argv...); !regexp.MustCompile(test.out).MatchString(out) {
				t.Errorf("got %q, want %s", out, test.out)
			}
		})
	}
	for _, test := range []struct {
		name  string
		where Target
		argv  []string
		want  string
	}{
		{"no such pod", Pod("nobody"), []string{"true"}, `there is no pod "default/nobody": the pods are default/shell`},
		{"no such node", Node("n9"), []string{"true"}, `there is no node "n9": the nodes are n1, n2`},
		{"no such command", Pod("shell"), []string{"nosuchcommand"}, `command "nosuchcommand" not found`},
		{"no command", Outside(), nil, "no command"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := l.Exec(l.ctx, test.where, Command{Argv: test.argv}, Stdio{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestExecSignalAndDeath(t *testing.T) {
	l := up(t, nodes+shell)
	l.ready()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	begun := func() string {
		buf := make([]byte, 100)
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(buf[:n]))
	}
	signals := make(chan os.Signal, 1)
	codes := make(chan int, 1)
	go func() {
		code, err := l.Exec(l.ctx, Pod("shell"), Command{Argv: []string{"sh", "-c", "trap 'exit 9' USR1; echo on; while :; do sleep 0.01; done"}}, Stdio{Out: w, Signals: signals})
		if err != nil {
			t.Error(err)
		}
		codes <- code
	}()
	begun()
	signals <- syscall.SIGUSR1
	if code := <-codes; code != 9 {
		t.Errorf("after SIGUSR1 the code is %d, want 9", code)
	}

	ctx, cancel := context.WithCancel(l.ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, Pod("shell"), Command{Argv: []string{"sh", "-c", "echo $$; exec sleep 1000"}}, Stdio{Out: w})
		ended <- err
	}()
	pid := begun()
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	l.until("the command to end with its client", func(*Status) bool {
		_, _, code, err := l.Output(l.ctx, Outside(), "kill", "-0", pid)
		return err == nil && code != 0
	})
}

func TestTerminal(t *testing.T) {
	l := up(t, nodes+shell)
	l.ready()
	ours, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer tty.Close()
	if err := pty.Setsize(ours, &pty.Winsize{Rows: 33, Cols: 77}); err != nil {
		t.Fatal(err)
	}
	codes := make(chan int, 1)
	go func() {
		code, err := l.Exec(l.ctx, Pod("shell"), Command{Argv: []string{"sh", "-c", "trap 'echo caught; exit 3' INT; stty size; echo waiting; while :; do sleep 0.01; done"}},
			Stdio{In: tty, Out: tty, Terminal: true})
		if err != nil {
			t.Error(err)
		}
		codes <- code
	}()
	var seen string
	read := func(want string) {
		t.Helper()
		buf := make([]byte, 1000)
		for !strings.Contains(seen, want) {
			if err := ours.SetReadDeadline(time.Now().Add(await.Patience)); err != nil && !strings.Contains(err.Error(), "no deadline") {
				t.Fatal(err)
			}
			n, err := ours.Read(buf)
			if err != nil {
				t.Fatalf("%v; saw %q", err, seen)
			}
			seen += string(buf[:n])
		}
	}
	read("33 77")
	read("waiting")
	if _, err := ours.Write([]byte{3}); err != nil { // ^C
		t.Fatal(err)
	}
	read("caught")
	if code := <-codes; code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
}

func TestServerProbeAndRestart(t *testing.T) {
	l := up(t, nodes+web)
	l.ready()
	url := "http://10.244.2.10:8080"
	if out := l.run(Pod("web"), 0, program(t), "get", url+"/x"); !strings.Contains(out, `"pod":"web"`) || !strings.Contains(out, `"path":"/x"`) {
		t.Errorf("got %s", out)
	}
	endpoints := filepath.Join(rpc.ObjectsDir(l.Dir), "endpoints.yaml")
	readyOnDisk := func() bool {
		b, err := os.ReadFile(endpoints)
		return err == nil && strings.Contains(string(b), `"ready":true`)
	}
	l.until("the endpoint of a ready pod to be ready on disk", func(*Status) bool { return readyOnDisk() })
	l.run(Pod("web"), 0, program(t), "get", url+"/unready")
	l.until("the probe to fail", func(st *Status) bool { return !pod(st, "default/web").Ready && !readyOnDisk() })
	l.run(Pod("web"), 0, program(t), "get", url+"/ready")
	l.ready()

	before := pod(l.until("it", func(*Status) bool { return true }), "default/web")
	l.run(Outside(), 0, "kill", "-9", strconv.Itoa(before.PIDs[0]))
	after := pod(l.until("a restart", func(st *Status) bool {
		p := pod(st, "default/web")
		return p.Restarts == 1 && p.Ready
	}), "default/web")
	if after.UID != before.UID || after.Addrs[0] != before.Addrs[0] {
		t.Errorf("a restart changed %+v to %+v", before, after)
	}
	log, err := l.Logs(l.ctx, "web", false)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	buf := make([]byte, 1000)
	if n, err := log.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "serving") {
		t.Errorf("log: %q, %v", buf[:n], err)
	}
}

func TestEdit(t *testing.T) {
	l := up(t, nodes+shell+web)
	l.ready()
	before := *pod(l.until("it", func(*Status) bool { return true }), "default/shell")

	l.edit(nodes + shell)
	l.until("a pod to go", func(st *Status) bool { return pod(st, "default/web").Name == "" })

	l.edit(nodes + shell + strings.Replace(web, "containers:", "kontainers:", 1))
	st := l.until("the mistake to be told", func(st *Status) bool { return st.ApplyError != "" })
	if !strings.Contains(st.ApplyError, "lab.yaml:") || !strings.Contains(st.ApplyError, "kontainers") {
		t.Errorf("the mistake is told as %q", st.ApplyError)
	}
	if len(st.Pods) != 1 {
		t.Errorf("a file with a mistake was applied: %+v", st.Pods)
	}

	l.edit(nodes + shell + strings.Replace(web, "nodeName: n2", "nodeName: n7", 1))
	l.until("the unknown node to be told", func(st *Status) bool { return strings.Contains(st.ApplyError, "n7") })

	l.edit(nodes + "---\n" + strings.ReplaceAll(strings.Split(nodes, "---")[0], "n1", "n3") + shell + strings.Replace(web, "nodeName: n2", "nodeName: n3", 1))
	st = l.until("a new node with a pod", func(st *Status) bool {
		return pod(st, "default/web").Ready && len(st.Nodes) == 3 && st.ApplyError == ""
	})
	if got := pod(st, "default/web").Addrs[0].String(); got != "10.244.3.10" {
		t.Errorf("the pod on n3 has %s", got)
	}
	if after := pod(st, "default/shell"); after.UID != before.UID || !slices.Equal(after.PIDs, before.PIDs) {
		t.Errorf("edits elsewhere changed %+v to %+v", before, after)
	}
	l.edit(nodes + strings.Replace(shell, `"1000"`, `"1001"`, 1))
	l.until("a changed pod and a node less", func(st *Status) bool {
		p := pod(st, "default/shell")
		return p.UID != before.UID && p.Ready && len(st.Nodes) == 2 && len(st.Pods) == 1
	})
}

// A folder of files is watched as a whole.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, yaml string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nodes.yaml", nodes)
	l := upFiles(t, dir)
	l.ready()
	write("pod.yaml", strings.Replace(shell, "spec:", "spec:\n  hostNetwork: true", 1))
	st := l.until("a pod in a new file", func(st *Status) bool { return pod(st, "default/shell").Ready })
	if got := pod(st, "default/shell").Addrs; got[0] != st.Nodes[0].Addrs[0] {
		t.Errorf("a hostNetwork pod has %v", got)
	}
	if out := l.run(Pod("shell"), 0, "cat", "/proc/net/dev"); !strings.Contains(out, "tapestry0:") {
		t.Errorf("a hostNetwork pod does not see its node's devices:\n%s", out)
	}
	if err := os.Remove(filepath.Join(dir, "pod.yaml")); err != nil {
		t.Fatal(err)
	}
	l.until("no pod without its file", func(st *Status) bool { return len(st.Pods) == 0 })
}

func TestBadCommand(t *testing.T) {
	l := up(t, nodes+shell+strings.NewReplacer("name: shell", "name: bad", `[sleep, "1000"]`, "[nosuchprogram]").Replace(shell))
	st := l.until("the others to be ready", func(st *Status) bool {
		return pod(st, "default/shell").Ready && strings.Contains(pod(st, "default/bad").Message, "nosuchprogram")
	})
	if !slices.ContainsFunc(st.Problems, func(p string) bool {
		return strings.Contains(p, "pod default/bad") && strings.Contains(p, `command "nosuchprogram" not found`)
	}) {
		t.Errorf("problems: %q", st.Problems)
	}
}

func TestAgent(t *testing.T) {
	l := up(t, nodes+shell)
	l.ready()
	st := l.until("it", func(*Status) bool { return true })
	caps := l.run(Node("n1"), 0, "grep", "^Cap", "/proc/"+strconv.Itoa(st.Nodes[0].PID)+"/status")
	if strings.Trim(regexp.MustCompile(`Cap\w+:\s*`).ReplaceAllString(caps, ""), "0\n") != "" {
		t.Errorf("the agent has capabilities:\n%s", caps)
	}
	if err := l.KillAgent(l.ctx, "n1", syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	l.until("the agent to be back", func(st *Status) bool { return st.Nodes[0].Restarts == 1 && st.Nodes[0].Agent == "ready" })
	if err := l.KillAgent(l.ctx, "n1", syscall.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	l.until("the agent to be down", func(st *Status) bool { return st.Nodes[0].Agent == "down" })
	// A pod that is added meanwhile waits for the agent.
	l.edit(nodes + shell + strings.Replace(shell, "name: shell", "name: late", 1))
	l.until("the pod to wait", func(st *Status) bool { return strings.Contains(pod(st, "default/late").Message, "agent") })
	if err := l.StartAgent(l.ctx, "n1"); err != nil {
		t.Fatal(err)
	}
	l.ready()
}

func TestImpair(t *testing.T) {
	l := up(t, nodes)
	l.ready()
	roundTrip := func() time.Duration {
		t.Helper()
		m := regexp.MustCompile(`time=([0-9.]+) ms`).FindStringSubmatch(l.run(Node("n1"), 0, "ping", "-c", "1", "-W", "2", "172.31.0.12"))
		if m == nil {
			t.Fatal("ping does not say how long it took")
		}
		ms, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ms * float64(time.Millisecond))
	}
	roundTrip() // makes neighbours known
	if err := l.Impair(l.ctx, "n2", "n1", impair.Config{Delay: 30 * time.Millisecond, Seed: 1}); err != nil {
		t.Fatal(err)
	}
	if st := l.until("it", func(*Status) bool { return true }); len(st.Impairments) != 1 || !strings.Contains(st.Impairments[0], "n1 - n2: delay 30ms") {
		t.Errorf("impairments: %q", st.Impairments)
	}
	if rtt := roundTrip(); rtt < 60*time.Millisecond {
		t.Errorf("round trip of %s with 30 ms each way", rtt)
	}
	if err := l.Unimpair(l.ctx, "n1", "n2"); err != nil {
		t.Fatal(err)
	}
	if rtt := roundTrip(); rtt > 30*time.Millisecond {
		t.Errorf("round trip of %s after the impairment", rtt)
	}
	if err := l.Impair(l.ctx, "n1", "n9", impair.Config{Loss: 1}); err == nil || !strings.Contains(err.Error(), "n9") {
		t.Errorf("impairing nobody: %v", err)
	}
}

// processes lists all processes except this one and its init. Without a lab there are no others in the namespace.
func processes(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, link := range links {
		pid := filepath.Base(filepath.Dir(link))
		if b, err := os.ReadFile(link); err == nil && pid != "1" && pid != strconv.Itoa(os.Getpid()) {
			out = append(out, pid+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

func TestDownLeavesNothing(t *testing.T) {
	l := up(t, nodes+shell+web)
	l.ready()
	if len(processes(t)) < 5 {
		t.Fatalf("a lab has more processes than %q", processes(t))
	}
	if err := l.Down(l.ctx); err != nil {
		t.Fatal(err)
	}
	if left := processes(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}

func TestCrashLeavesNothing(t *testing.T) {
	l := up(t, nodes+shell+web)
	l.ready()
	supervisor := 0
	for _, p := range processes(t) {
		// The init has the same command line and the lower ID. It ends with its child.
		if pid, cmd, _ := strings.Cut(p, " "); strings.Contains(cmd, superviseArg) {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			supervisor = max(supervisor, n)
		}
	}
	if supervisor == 0 {
		t.Fatal("there is no supervisor") // and 0 would be this process's group
	}
	if err := unix.Kill(supervisor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Ended():
	case <-l.ctx.Done():
		t.Fatal("the lab goes on without its supervisor")
	}
	if left := processes(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	state := filepath.Dir(l.Dir)
	if _, err := DialIn(state, l.Name); err == nil || !strings.Contains(err.Error(), "crashed") {
		t.Errorf("dialling a lab that crashed: %v", err)
	}
	if err := DownIn(l.ctx, state, l.Name); err != nil {
		t.Error(err)
	}
	if names, err := Names(state); err != nil || len(names) > 0 {
		t.Errorf("folders left: %q, %v", names, err)
	}
}

func TestTwoLabs(t *testing.T) {
	a := up(t, nodes+shell)
	b := up(t, nodes+web)
	a.ready()
	b.ready()
	_, err := Up(a.ctx, Options{Name: a.Name, Files: []string{a.file}, StateDir: filepath.Dir(a.Dir), Product: program(t)})
	if err == nil || !strings.Contains(err.Error(), "is up already") {
		t.Errorf("a second lab of one name: %v", err)
	}
	a.run(Pod("shell"), 0, "true") // the first lab was not harmed
}

func TestUpRefuses(t *testing.T) {
	self := program(t)
	for _, test := range []struct {
		name, yaml, product, want string
	}{
		{"no node", "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n", self, "no Node"},
		{"no YAML", "a: [", self, "lab.yaml"},
		{"overlap", strings.ReplaceAll(nodes, "\nmetadata", "\nspec: {podCIDRs: [10.1.0.0/24]}\nmetadata"), self, "overlap"},
		{"address out of range", nodes + strings.Replace(shell, "{name: shell}", `{name: shell, annotations: {tapestry.dev/pod-ips: "10.9.9.9"}}`, 1), self, "10.9.9.9"},
		{"no product", nodes, filepath.Join(filepath.Dir(self), "none"), "there is no "},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "lab.yaml")
			if err := os.WriteFile(file, []byte(test.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			state := t.TempDir()
			c, err := Up(context.Background(), Options{Name: "t", Files: []string{file}, StateDir: state, Product: test.product})
			if err == nil {
				t.Fatal("it is up", c.Down(context.Background()))
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			if names, _ := Names(state); len(names) > 0 {
				t.Errorf("left %q", names)
			}
		})
	}
}
