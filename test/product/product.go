// Package product finds the executable tapestry, which tests and benchmarks run.
package product

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Variable is the environment variable that names the executable where no path is given.
const Variable = "TAPESTRY_EXECUTABLE"

// name is the file name of the executable.
const name = "tapestry"

// Find returns the absolute path of the executable: path, or else the value of Variable, or else the file beside this
// program.
func Find(path string) (string, error) {
	if path == "" {
		path = os.Getenv(Variable)
	}
	if path != "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if err := executable(abs); err != nil {
			return "", fmt.Errorf("the executable tapestry: %w", err)
		}
		return abs, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if err := executable(beside); err != nil {
		return "", fmt.Errorf("the agents of a lab are the executable tapestry beside this one: %w: build both with 'make build', or name one with --tapestry PATH", err)
	}
	return beside, nil
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no %s", path)
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not an executable file", path)
	}
	return nil
}
