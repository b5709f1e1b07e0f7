package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"

	"tapestry.dev/tapestry/test/kubernetes/node"
)

// mountPointsFile lists the directories that labs made on the machine to mount over them. Each lab that is up holds a
// shared lock on this file. Removing a directory also removes what is mounted there in other namespaces, so only the
// last lab removes the directories.
const mountPointsFile = "/run/lock/tapestry-klab"

// makeMountPoints makes these directories. Some process must keep the file open as long as the lab is up.
func makeMountPoints() (*os.File, error) {
	f, err := os.OpenFile(mountPointsFile, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", mountPointsFile, err)
	}
	made, err := node.MakeMountPoints()
	for _, dir := range made {
		if _, err := fmt.Fprintln(f, dir); err != nil {
			f.Close()
			return nil, err
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeMountPoints removes these directories, unless another lab is up. It keeps directories in which others have put
// something.
func removeMountPoints() error {
	f, err := os.OpenFile(mountPointsFile, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil
	case err != nil:
		return fmt.Errorf("lock %s: %w", mountPointsFile, err)
	}
	text, err := os.ReadFile(mountPointsFile)
	if err != nil {
		return err
	}
	dirs := strings.Fields(string(text))
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) }) // subdirectories first
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			slog.Warn("a mount point stays", "error", err)
		}
	}
	return f.Truncate(0)
}
