package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"tapestry.dev/tapestry/test/kubernetes/node"
)

// HoldArgument makes the program that runs the labs hold its namespaces until its standard input ends and the process
// is ended.
const HoldArgument = "hold"

// A waiting process was started in its namespaces, and begins when it is told to.
type waiting struct {
	cmd  *exec.Cmd
	done <-chan error
	in   *os.File
}

// hold starts this program in new namespaces, in the cgroup, with its output in the log. The process keeps the files
// open.
func (l Lab) hold(group cgroups, name, argument string, attr *syscall.SysProcAttr, files ...*os.File) (*waiting, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(self, argument)
	cmd.Stdin, cmd.ExtraFiles = r, files
	attr.Setsid = true
	cmd.SysProcAttr = attr
	done, err := l.start(cmd, group, name)
	if err != nil {
		w.Close()
		return nil, err
	}
	return &waiting{cmd: cmd, done: done, in: w}, nil
}

// begin sends the process what it waits for.
func (w *waiting) begin(what any) error {
	defer w.in.Close()
	return json.NewEncoder(w.in).Encode(what)
}

// start starts the command in the cgroup, with its output in the log of that name. When the command ends, done gets the
// reason.
func (l Lab) start(cmd *exec.Cmd, group cgroups, name string) (done <-chan error, err error) {
	path := filepath.Join(l.Dir(), name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := group.make(name); err != nil {
		return nil, fmt.Errorf("make the cgroup of %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := group.join(cmd.Process.Pid, name); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		ended <- fmt.Errorf("%s has ended (%v): %s", name, err, tail(path))
	}()
	return ended, nil
}

// tail returns the last lines of a file as one line.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ") + " (" + path + ")"
}

// In returns a command that runs in the network namespace of a node or of the host outside, and in this process's other
// namespaces.
func (s State) In(name string, argv ...string) ([]string, error) {
	pid, err := s.PID(name)
	if err != nil {
		return nil, err
	}
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--"}, argv...), nil
}

// Inside returns a command that runs in all namespaces of a node.
func (s State) Inside(name string, argv ...string) ([]string, error) {
	if name == "outside" {
		return s.In(name, argv...)
	}
	i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		_, err := s.PID(name)
		return nil, err
	}
	enter := []string{"nsenter", fmt.Sprintf("--target=%d", s.Nodes[i].PID), "--mount", "--uts", "--ipc", "--net", "--pid"}
	if s.Nodes[i].UserNS {
		enter = append(enter, "--user")
	}
	return append(append(enter, "--"), argv...), nil
}

// startNode starts the node's first process, which then waits.
func (l Lab) startNode(group cgroups, name string, userNS bool) (*waiting, error) {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
	}
	if !userNS {
		return l.hold(group, name, node.Argument, attr)
	}
	if err := l.lend(group, name); err != nil {
		return nil, fmt.Errorf("give %s the directories and cgroups of its root: %w", name, err)
	}
	inUserNS(attr)
	return l.hold(group, name, node.Argument, attr)
}
