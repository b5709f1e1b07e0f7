package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// DefaultWork returns the lab's default directory: that of the variable TAPESTRY_KLAB, or a directory that outlives the
// cluster, since packing the images takes minutes.
func DefaultWork() string {
	if dir := os.Getenv("TAPESTRY_KLAB"); dir != "" {
		return dir
	}
	return "/var/tmp/tapestry-kubernetes"
}

// StopControlPlane ends the lab's control plane like a power failure. Its data stays.
func (l Lab) StopControlPlane() error {
	s, err := l.State()
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(l.controlPlaneDir(), "ready")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	group, err := l.cgroups()
	if err != nil {
		return err
	}
	group.root = filepath.Join(group.root, "controlplane")
	if err := group.kill(); err != nil {
		return err
	}
	s.ControlPlane = 0
	return l.write(s)
}

// StartControlPlane starts the control plane again, and returns when it is ready.
func (l Lab) StartControlPlane(ctx context.Context) error {
	s, err := l.State()
	if err != nil {
		return err
	}
	if s.ControlPlane != 0 && syscall.Kill(s.ControlPlane, 0) == nil {
		return fmt.Errorf("the control plane runs already, as process %d", s.ControlPlane)
	}
	group, err := l.cgroups()
	if err != nil {
		return err
	}
	cmd, err := l.controlPlaneCommand(s, len(s.Nodes[0].Addrs) > 1)
	if err != nil {
		return err
	}
	done, err := l.start(cmd, group, "controlplane")
	if err != nil {
		return err
	}
	s.ControlPlane = cmd.Process.Pid
	if err := l.write(s); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(l.controlPlaneDir(), "ready")); err == nil {
			return nil
		}
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
