package supervise

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/cmd/program"
	"tapestry.dev/tapestry/test/await"
)

// roleVar in the environment makes the test program "tapestry supervise COMMAND", and then the command.
const roleVar = "TAPESTRY_TEST_SUPERVISE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) == "" {
		os.Exit(m.Run())
	}
	if os.Args[1] == "supervise" {
		os.Exit(program.Run(&cli.App{Name: "tapestry", Commands: []*cli.Command{Command()}}, os.Args))
	}
	command(os.Args[1:])
}

// command plays the agent: its arguments are what to do in each run, the last one for all later runs. It prints a line
// at its start, and one for each signal that it notices.
func command(runs []string) {
	life, _ := Supervised()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1, unix.SIGHUP)
	fmt.Printf("run %d of process %d: %s\n", life.Restarts, os.Getpid(), life.Why)
	for _, do := range strings.Split(runs[min(life.Restarts, len(runs)-1)], ",") {
		status, err := strconv.Atoi(do)
		switch {
		case err == nil:
			os.Exit(status)
		case do == "serve":
			Serving()
			fmt.Println("serving")
		case do == "orphan":
			// The shell ends at once, and its child some time later.
			if err := exec.Command("/bin/sh", "-c", "cat </dev/null & exit 0").Run(); err != nil {
				fmt.Println(err)
			}
		case do == "wait":
			for sig := range signals {
				fmt.Println("signal:", sig)
				if sig == unix.SIGTERM || sig == unix.SIGHUP {
					os.Exit(7)
				}
			}
		}
	}
}

// supervised is a running supervisor.
type supervised struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Reader

	mu  sync.Mutex
	log bytes.Buffer
}

func (s *supervised) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *supervised) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func supervise(t *testing.T, runs ...string) *supervised {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &supervised{t: t, cmd: exec.Command(exe, append([]string{"supervise"}, runs...)...)}
	s.cmd.Env, s.cmd.Stderr = append(os.Environ(), roleVar+"=1"), s
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.lines = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(await.Patience, func() { _ = s.cmd.Process.Kill() })
	t.Cleanup(func() {
		stuck.Stop()
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	return s
}

// line expects a line of the command's that begins so, and returns the rest of it.
func (s *supervised) line(begin string) string {
	s.t.Helper()
	got, err := s.lines.ReadString('\n')
	rest, ok := strings.CutPrefix(got, begin)
	if err != nil || !ok {
		s.t.Fatalf("the command says %q, %v; want %q...\n%s", got, err, begin, s.said())
	}
	return strings.TrimSpace(rest)
}

// begun expects the beginning of a run, and returns its process and how the run before ended.
func (s *supervised) begun(run int) (pid int, why string) {
	s.t.Helper()
	number, why, _ := strings.Cut(s.line(fmt.Sprintf("run %d of process ", run)), ":")
	pid, err := strconv.Atoi(number)
	if err != nil {
		s.t.Fatal(err)
	}
	return pid, strings.TrimSpace(why)
}

// wait waits for the supervisor's end, and returns its exit status.
func (s *supervised) wait() int {
	_ = s.cmd.Wait()
	return s.cmd.ProcessState.ExitCode()
}

// TestKilledAgain: a command that is killed again and again is started again at once, and told why. The supervisor
// passes signals on, and ends with the command when it is told to.
func TestKilledAgain(t *testing.T) {
	s := supervise(t, "serve,wait")
	why := ""
	for run := range 4 {
		pid, got := s.begun(run)
		if got != why {
			t.Errorf("run %d is told that the one before was %q, want %q", run, got, why)
		}
		s.line("serving")
		if run < 3 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		why = "killed by signal 9 (killed)"
	}
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGTERM} {
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		s.line("signal: " + sig.String())
	}
	if status := s.wait(); status != 7 {
		t.Errorf("the supervisor ends with %d, the command with 7", status)
	}
	if n := strings.Count(s.said(), `why="killed by signal 9 (killed)" served=true`); n != 3 || strings.Count(s.said(), "pause=0s") != 3 {
		t.Errorf("three deaths without a pause are said as %d:\n%s", n, s.said())
	}
}

// TestFailsBeforeItServes: there are pauses after runs that did not serve, and none after one that did.
func TestFailsBeforeItServes(t *testing.T) {
	s := supervise(t, "3", "4", "serve,5", "serve,wait")
	for run, want := range []string{"", "ended with status 3", "ended with status 4", "ended with status 5"} {
		if _, why := s.begun(run); why != want {
			t.Errorf("run %d is told that the one before %q, want %q", run, why, want)
		}
		if run > 1 {
			s.line("serving")
		}
	}
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if status := s.wait(); status != 7 {
		t.Errorf("the supervisor ends with %d, the command with 7", status)
	}
	var pauses []string
	for line := range strings.Lines(s.said()) {
		if _, pause, ok := strings.Cut(line, "pause="); ok {
			pauses = append(pauses, strings.TrimSpace(pause))
		}
	}
	if want := []string{"100ms", "200ms", "0s"}; !slices.Equal(pauses, want) {
		t.Errorf("the pauses are %v, want %v:\n%s", pauses, want, s.said())
	}
}

// TestEndsInAPause: the supervisor ends at once, with the status of the last run.
func TestEndsInAPause(t *testing.T) {
	s := supervise(t, "3")
	await.Until(t, "a pause that is long enough", func() bool { return strings.Contains(s.said(), "pause=3.2s") })
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = s.lines.WriteTo(new(bytes.Buffer)) }()
	if status := s.wait(); status != 3 {
		t.Errorf("the supervisor ends with %d, the command with 3", status)
	}
}

// TestSupervisorKilled: the command does not outlive its supervisor.
func TestSupervisorKilled(t *testing.T) {
	s := supervise(t, "serve,wait")
	s.begun(0)
	s.line("serving")
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The other end of the pipe is the command's alone now.
	if rest, err := s.lines.ReadString('\n'); err == nil {
		t.Errorf("the command says %q", rest)
	}
}

// TestOrphans: processes that are left behind are reaped.
func TestOrphans(t *testing.T) {
	s := supervise(t, "orphan,orphan,serve,wait")
	pid, _ := s.begun(0)
	s.line("serving")
	await.Until(t, "the command is the supervisor's only child", func() bool {
		return slices.Equal(childrenOf(t, s.cmd.Process.Pid), []int{pid})
	})
}

// childrenOf returns the children of a process, those that nobody has reaped among them.
func childrenOf(t *testing.T, parent int) (list []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended meanwhile
		}
		// The text after the name begins with the state, and goes on with the parent.
		_, after, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(after); len(f) > 1 && f[1] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, pid)
		}
	}
	return list
}

// TestMisuse has command lines that run nothing.
func TestMisuse(t *testing.T) {
	for _, args := range [][]string{{}, {"--node=n1"}, {"supervise", "agent"}} {
		app := &cli.App{Name: "tapestry", Commands: []*cli.Command{Command()}, ExitErrHandler: func(*cli.Context, error) {}}
		err := app.RunContext(context.Background(), append([]string{"tapestry", "supervise"}, args...))
		if err == nil || !strings.Contains(err.Error(), "supervise takes the command that it runs") {
			t.Errorf("%q: %v", args, err)
		}
	}
}
