package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// MissingError says that a program is not installed that is to be measured, or to measure with.
type MissingError struct {
	Program string
	// Package is the command that installs it.
	Package string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed: %s", e.Program, e.Package)
}

// peersDir is where "make peers" puts programs, relative to the directory of the executable.
const peersDir = "peers"

// Find looks for a program beside the executable, where "make peers" puts some, and then where programs are installed,
// including the administrator's directories, which an ordinary user's PATH often lacks. If there is none it returns a
// *MissingError with install, the command that installs the program.
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
