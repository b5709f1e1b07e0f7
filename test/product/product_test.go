package product

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func program(t *testing.T, path string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), mode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return path
}

func TestFind(t *testing.T) {
	t.Setenv(Variable, "")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Find(""); err == nil || !strings.Contains(err.Error(), filepath.Join(filepath.Dir(self), name)) || !strings.Contains(err.Error(), "--tapestry PATH") {
		t.Errorf("with none beside this program: %v", err)
	}
	beside := program(t, filepath.Join(filepath.Dir(self), name), 0o755)
	if got, err := Find(""); err != nil || got != beside {
		t.Errorf("got %q, %v, want the one beside this program", got, err)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	named := program(t, filepath.Join(dir, "named"), 0o755)
	t.Setenv(Variable, named)
	if got, err := Find(""); err != nil || got != named {
		t.Errorf("got %q, %v, want that of the environment", got, err)
	}
	other := program(t, filepath.Join(dir, "other"), 0o755)
	if got, err := Find("other"); err != nil || got != other {
		t.Errorf("got %q, %v, want the one that was named, as an absolute path", got, err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing"):                     "there is no ",
		program(t, filepath.Join(dir, "data.txt"), 0o644): "is not an executable file",
		dir: "is not an executable file",
	} {
		if got, err := Find(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
}
