package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tapestry.dev/tapestry/test/kubernetes/node"
)

// cgroups has the machine's hierarchies, and the name of the lab's own group in each of them.
type cgroups struct {
	dirs []string
	root string
}

func (l Lab) cgroups() (cgroups, error) {
	hierarchies, err := node.Hierarchies()
	if err != nil {
		return cgroups{}, err
	}
	c := cgroups{root: l.cgroup()}
	for _, h := range hierarchies {
		c.dirs = append(c.dirs, h.Dir)
	}
	if len(c.dirs) == 0 {
		return c, errors.New("this machine has no cgroup v1 hierarchies: nodes' pods get their cgroups there, and cgroup v2 alone is not supported")
	}
	return c, nil
}

// make makes a group below the lab's own in every hierarchy.
func (c cgroups) make(name string) error {
	for _, dir := range c.dirs {
		path := dir
		for _, part := range strings.Split(filepath.Join(c.root, name), "/") {
			parent := path
			path = filepath.Join(path, part)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			// A new cpuset is empty and accepts no process.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(parent, file))
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(path, file), bytes.TrimSpace(value), 0o644); err != nil {
					return fmt.Errorf("set %s: %w", filepath.Join(path, file), err)
				}
			}
		}
	}
	return nil
}

// join moves the process into the group. Processes that it starts later are in the group as well.
func (c cgroups) join(pid int, name string) error {
	for _, dir := range c.dirs {
		file := filepath.Join(dir, c.root, name, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("move process %d: %w", pid, err)
		}
	}
	return nil
}

// processes lists all processes in the lab's groups.
func (c cgroups) processes() (map[int]bool, error) {
	pids := map[int]bool{}
	err := c.walk(func(dir string) error {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil
		}
		for _, f := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return err
			}
			pids[pid] = true
		}
		return err
	})
	return pids, err
}

// kill ends every process in the lab's groups, and returns when there is none left.
func (c cgroups) kill() error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids, err := c.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes in the cgroup %s do not end", len(pids), c.root)
		}
		for pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end process %d: %w", pid, err)
			}
		}
	}
}

// remove removes the lab's groups, which must have no processes.
func (c cgroups) remove() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var dirs []string
		if err := c.walk(func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
			return err
		}
		if len(dirs) == 0 {
			return nil
		}
		var failed error
		for i := len(dirs) - 1; i >= 0; i-- { // a group comes before its subgroups
			if err := syscall.Rmdir(dirs[i]); err != nil && !errors.Is(err, syscall.ENOENT) {
				failed = fmt.Errorf("remove the cgroup %s: %w", dirs[i], err)
			}
		}
		// A process that has ended stays in its group until its parent reaps it.
		if failed != nil && time.Now().After(deadline) {
			return failed
		}
	}
}

func (c cgroups) walk(visit func(dir string) error) error {
	for _, dir := range c.dirs {
		err := filepath.WalkDir(filepath.Join(dir, c.root), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.IsDir() {
				return err
			}
			return visit(path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
