package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"tapestry.dev/tapestry/test/awake"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/steps"
)

// line is a line of 'demo --json'.
type line struct {
	Name   string
	OK     *bool
	Detail *string
	Millis *int64 `json:"ms"`
}

func lines(t *testing.T, stdout string) (all []line) {
	t.Helper()
	for s := bufio.NewScanner(strings.NewReader(stdout)); s.Scan(); {
		dec := json.NewDecoder(bytes.NewReader(s.Bytes()))
		dec.DisallowUnknownFields()
		var l line
		if err := dec.Decode(&l); err != nil || dec.More() {
			t.Fatalf("%q is not one object with name, ok, detail and ms: %v", s.Text(), err)
		}
		if l.Name == "" || l.OK == nil || l.Detail == nil || l.Millis == nil || *l.Millis < 0 {
			t.Errorf("%q lacks a field", s.Text())
		}
		all = append(all, l)
	}
	return all
}

// noLab checks that no lab of that name is left.
func noLab(t *testing.T, name string) {
	t.Helper()
	state, err := lab.DefaultStateDir()
	if err != nil {
		t.Fatal(err)
	}
	names, err := lab.Names(state)
	if err != nil || strings.Contains(strings.Join(names, " "), name) {
		t.Errorf("labs are left: %v, %v", names, err)
	}
}

// TestDemo runs the whole demo. Every step is a line of JSON, the exit status is 0, and the demo takes less than 30
// seconds, without the time in which the machine lets nobody run.
func TestDemo(t *testing.T) {
	clock := awake.Start()
	defer clock.Stop()
	got := tapestryLab(t, "demo", "--json", "--name", "demo-json")
	if got.code != 0 || got.stderr != "" {
		t.Errorf("exit status %d: %s", got.code, got.stderr)
	}
	if took := clock.Now(); took > 30*time.Second {
		t.Errorf("the demo took %s, want at most 30 s", took)
	}
	want := []string{"up"}
	for _, s := range steps.All() {
		want = append(want, s.Name)
	}
	want = append(want, "bench")
	var names []string
	for _, l := range lines(t, got.stdout) {
		names = append(names, l.Name)
		if !*l.OK {
			t.Errorf("%s: %s", l.Name, *l.Detail)
		}
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("the steps were %v, want %v", names, want)
	}
	noLab(t, "demo-json")
}

// TestDemoFails stops an agent during a demo. The step that needs the agent fails, and so does the command.
func TestDemoFails(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), self(t), "demo", "--json", "--name", "demo-fails", "--step", "pod-to-pod", "--step", "node-port")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(stdout)
	first, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	// The demo waits meanwhile, so that it does not play the step before the agent is stopped. Its lab runs.
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	client, err := lab.Dial("demo-fails")
	if err != nil {
		t.Fatal(err)
	}
	if err := client.KillAgent(t.Context(), "node-2", syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the demo ended with %v, want exit status 1", err)
	}
	all := lines(t, first+string(rest))
	if len(all) != 3 || !*all[0].OK || !*all[1].OK || all[2].Name != "node-port" || *all[2].OK || *all[2].Detail == "" {
		t.Errorf("want up and pod-to-pod to be good and node-port to have failed: %s%s", first, rest)
	}
	noLab(t, "demo-fails")
}

// TestDemoUnknownStep: a step that does not exist is refused before anything is started.
func TestDemoUnknownStep(t *testing.T) {
	got := tapestryLab(t, "demo", "--json", "--name", "demo-unknown", "--step", "pod-to-moon")
	if got.code != 1 || got.stdout != "" {
		t.Errorf("exit status %d, want 1; stdout %q", got.code, got.stdout)
	}
	contains(t, got.stderr, `"pod-to-moon"`, "pod-to-pod, across-nodes")
	noLab(t, "demo-unknown")
}

// TestExec runs commands in the namespaces of a lab from the command line.
func TestExec(t *testing.T) {
	c := up(t, "exec", nodesYAML+podYAML("near", "node-1"))
	for _, test := range []struct {
		name   string
		args   []string
		stdin  string
		code   int
		stdout string
		stderr []string
	}{
		{"exit status", []string{"exec", "near", "--", "sh", "-c", "exit 7"}, "", 7, "", nil},
		{"signal", []string{"exec", "near", "--", "sh", "-c", "kill -9 $$"}, "", 137, "", nil},
		{"standard input", []string{"exec", "near", "--", "tr", "a-z", "A-Z"}, strings.Repeat("through a pipe\n", 10000), 0, strings.Repeat("THROUGH A PIPE\n", 10000), nil},
		{"streams apart", []string{"exec", "default/near", "--", "sh", "-c", "echo out; echo err >&2"}, "", 0, "out\n", []string{"err\n"}},
		{"environment", []string{"exec", "-e", "COLOUR=red", "near", "--", "sh", "-c", "echo $COLOUR"}, "", 0, "red\n", nil},
		{"node", []string{"node", "node-2", "--", "hostname"}, "", 0, "node-2\n", nil},
		{"outside", []string{"outside", "--", "hostname"}, "", 0, "outside\n", nil},
		{"no such pod", []string{"exec", "nobody", "--", "true"}, "", 126, "", []string{`there is no pod "default/nobody"`, "the pods are default/near"}},
		{"no such node", []string{"node", "node-9", "--", "true"}, "", 126, "", []string{`there is no node "node-9"`, "the nodes are node-1, node-2"}},
		{"no such command", []string{"exec", "near", "--", "no-such-command"}, "", 126, "", []string{`command "no-such-command" not found`}},
		{"no command", []string{"exec", "near"}, "", 1, "", []string{"no command was named", "POD -- COMMAND"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{test.args[0], "--name", c.Name}, test.args[1:]...)
			cmd := exec.CommandContext(t.Context(), self(t), args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(test.stdin), &stdout, &stderr
			_ = cmd.Run() // its status is looked at
			if code := cmd.ProcessState.ExitCode(); code != test.code || stdout.String() != test.stdout {
				t.Errorf("exit status %d, want %d; stdout %.100q, want %.100q; stderr %q", code, test.code, stdout.String(), test.stdout, stderr.String())
			}
			contains(t, stderr.String(), test.stderr...)
		})
	}
	t.Run("terminal", func(t *testing.T) { execTerminal(t, c) })
}

// execTerminal runs a shell on a terminal. The shell has a terminal of its own, of the same size, and its exit status
// is passed on.
func execTerminal(t *testing.T, c *cluster) {
	cmd := exec.CommandContext(t.Context(), self(t), "exec", "--name", c.Name, "near", "--", "sh", "-c", "test -t 0 && test -t 1 && stty size && read word && echo you said $word && exit 5")
	ours, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	seen := make(chan string, 64)
	go func() {
		defer close(seen)
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			if err != nil { // EIO when the other side is closed
				return
			}
			seen <- string(buf[:n])
		}
	}()
	var text string
	await := func(want string) {
		t.Helper()
		over := time.After(patience)
		for !strings.Contains(text, want) {
			select {
			case s, ok := <-seen:
				if text += s; !ok {
					t.Fatalf("the terminal ended with %q, want %q", text, want)
				}
			case <-over:
				t.Fatalf("the terminal shows %q, want %q", text, want)
			}
		}
	}
	await("31 99")
	if _, err := ours.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	await("you said hello")
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("it ended with %v, want exit status 5", err)
	}
}

// TestLogsAndPS looks at a lab from the command line.
func TestLogsAndPS(t *testing.T) {
	c := up(t, "shown", nodesYAML+podYAML("near", "node-1")+serviceYAML("near", "near", 30081))
	ps := tapestryLab(t, "ps", "--name", c.Name)
	contains(t, ps.stdout, "node-1", "node-2", "ready", "near", "Running", "81:30081/TCP", c.addr(t, "near", false).String(), c.addr(t, "near", true).String())
	var st lab.Status
	if err := json.Unmarshal([]byte(tapestryLab(t, "ps", "--name", c.Name, "--json").stdout), &st); err != nil || len(st.Nodes) != 2 {
		t.Errorf("ps --json: %v, %+v", err, st)
	}
	contains(t, tapestryLab(t, "logs", "--name", c.Name, "near").stdout, "serving", "near")
	contains(t, tapestryLab(t, "logs", "--name", c.Name, "node/node-2").stdout, "the node is ready", "node=node-2")
	contains(t, tapestryLab(t, "logs", "--name", c.Name).stdout, "lab is up")
	// The private key is in its file, and in no log.
	key, err := os.ReadFile(c.Dir + "/nodes/node-2/wireguard.key")
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(key))
	for _, log := range []string{"node/node-2", "node/node-1", ""} {
		if out := tapestryLab(t, "logs", "--name", c.Name, log).stdout; secret == "" || strings.Contains(out, secret) {
			t.Errorf("the log %q holds the private key", log)
		}
	}
}
