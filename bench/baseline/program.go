package baseline

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
)

// MissingError says that a baseline needs a program that is not installed.
type MissingError struct {
	Program string
	// Package is the command that brings it.
	Package string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed: %s", e.Program, e.Package)
}

const (
	// makePeers brings the programs that are not packages of Debian.
	makePeers = "make peers"
	// peersDir is where it puts them, seen from the directory of the executable.
	peersDir = "peers"
)

// find looks for a program beside the executable, where "make peers" builds some, and then where programs are installed. An
// ordinary user's PATH often lacks the directories of the administrator's.
func find(name, install string) (string, error) {
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Join(filepath.Dir(self), peersDir))
	}
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	for _, dir := range append(dirs, "/usr/local/sbin", "/usr/sbin", "/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(path) {
			return path, nil
		}
	}
	return "", &MissingError{Program: name, Package: install}
}

// daemon starts a program that ends with p.
func (p *pair) daemon(ns *tap.Namespace, cmd *exec.Cmd, ready func(context.Context) error) error {
	d, err := process.StartDaemon(ns, cmd, ready)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, d)
	return nil
}

// tempDir makes a directory that ends with p.
func (p *pair) tempDir() (string, error) {
	dir, err := os.MkdirTemp("", "tapestry-bench-*")
	if err != nil {
		return "", err
	}
	p.closers = append(p.closers, closerFunc(func() error { return os.RemoveAll(dir) }))
	return dir, nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
