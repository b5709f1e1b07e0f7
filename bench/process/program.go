package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// MissingError says that a program to measure, or to measure with, is not installed.
type MissingError struct {
	Program string
	// Package is the command that brings it.
	Package string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed: %s", e.Program, e.Package)
}

// peersDir is where "make peers" puts programs, seen from the directory of the executable.
const peersDir = "peers"

// Find looks for a program beside the executable, where "make peers" builds some, and then where programs are
// installed. It returns a *MissingError with install, the command that brings the program, when there is none. An
// ordinary user's PATH often lacks the directories of the administrator's.
func Find(name, install string) (string, error) {
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
