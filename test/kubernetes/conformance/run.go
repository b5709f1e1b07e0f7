// Package conformance runs Kubernetes' own end-to-end tests against a cluster, and reports the result of each selected
// test.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// Network matches the tests that every cluster's network must pass. NetworkCount is how many Kubernetes 1.34 has.
const (
	Network      = `\[sig-network\].*\[Conformance\]`
	NetworkCount = 45
)

// Harmful matches tests that break the cluster for others, or fail sometimes on every cluster.
const Harmful = `\[Disruptive\]|\[Flaky\]`

// A Run is one run of the suite.
type Run struct {
	// Bin has ginkgo, e2e.test and kubectl.
	Bin string
	// Kubeconfig is the administrator's. In is a command that runs another command where the API server can be reached.
	Kubeconfig string
	In         []string
	// Nodes is the number of nodes in the cluster.
	Nodes int
	// Focus and Skip are regular expressions for the tests' names.
	Focus, Skip string
	// Procs is how many tests run at the same time.
	Procs int
	// Out is the directory for the reports.
	Out string
}

// Do runs the suite, which prints to standard output. Failing tests are no error; the Report lists them.
func (r Run) Do(ctx context.Context) (Report, error) {
	if _, err := regexp.Compile(r.Focus); err != nil {
		return Report{}, fmt.Errorf("-focus: %w", err)
	}
	if _, err := regexp.Compile(r.Skip); err != nil {
		return Report{}, fmt.Errorf("-skip: %w", err)
	}
	if err := os.MkdirAll(r.Out, 0o755); err != nil {
		return Report{}, err
	}
	junit := filepath.Join(r.Out, "junit.xml")
	if err := os.Remove(junit); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Report{}, err
	}
	argv := append(append([]string{}, r.In...),
		filepath.Join(r.Bin, "ginkgo"), "--procs="+strconv.Itoa(r.Procs), "--no-color", "--timeout=2h",
		"--focus="+r.Focus, "--skip="+r.Skip, "--output-dir="+r.Out, "--junit-report=junit.xml",
		filepath.Join(r.Bin, "e2e.test"), "--",
		"--kubeconfig="+r.Kubeconfig, "--provider=skeleton", "--num-nodes="+strconv.Itoa(r.Nodes),
		"--dump-logs-on-failure=false", "--disable-log-dump=true")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Tests call kubectl.
	cmd.Env = append(os.Environ(), "PATH="+r.Bin+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// The tests' own processes are ginkgo's children. A signal to the group ends all of them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 30 * time.Second
	began := time.Now()
	err := cmd.Run()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		return Report{}, fmt.Errorf("run the suite: %w", err)
	}
	if ctx.Err() != nil {
		return Report{}, ctx.Err()
	}
	report, err := read(junit)
	if err != nil {
		return Report{}, fmt.Errorf("read the suite's report: %w", err)
	}
	report.Took = time.Since(began)
	return report, nil
}
