// Package conformance runs Kubernetes' own end-to-end tests against a cluster, and says of each one that was asked for
// how it went.
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

// Network are the tests that every cluster's network has to pass; NetworkCount is how many there are in Kubernetes
// 1.34.
const (
	Network      = `\[sig-network\].*\[Conformance\]`
	NetworkCount = 45
)

// Harmful are tests that break the cluster for others, or fail now and then on every cluster.
const Harmful = `\[Disruptive\]|\[Flaky\]`

// A Run is one of the suite.
type Run struct {
	// Bin has ginkgo, e2e.test and kubectl.
	Bin string
	// Kubeconfig is the administrator's, and In the command that runs another one where its server is reached.
	Kubeconfig string
	In         []string
	// Nodes is how many the cluster has.
	Nodes int
	// Focus and Skip are regular expressions for the tests' names.
	Focus, Skip string
	// Procs is how many tests run at one time.
	Procs int
	// Out is the directory of the reports.
	Out string
}

// Do runs the suite, which prints to standard output. That tests fail is no error: the report says so.
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
	// The tests' own processes are ginkgo's children: all of them end on a signal to the group.
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
		return Report{}, fmt.Errorf("what the suite reports: %w", err)
	}
	report.Took = time.Since(began)
	return report, nil
}
