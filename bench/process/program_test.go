package process

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	want := program(t, dir)
	t.Setenv("PATH", dir)
	if got, err := Find("tapestry-test-program", ""); err != nil || got != want {
		t.Errorf("in PATH: got %q, %v", got, err)
	}
	t.Setenv("PATH", "")
	_, err := Find("tapestry-test-program", "apt-get install it")
	if m, ok := err.(*MissingError); !ok || *m != (MissingError{"tapestry-test-program", "apt-get install it"}) {
		t.Errorf("nowhere: got %#v", err)
	}
	if err == nil || err.Error() != "tapestry-test-program is not installed: apt-get install it" {
		t.Errorf("nowhere: got %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(self), peersDir)
	if err := os.MkdirAll(beside, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(beside) })
	want = program(t, beside)
	t.Setenv("PATH", dir)
	if got, err := Find("tapestry-test-program", ""); err != nil || got != want {
		t.Errorf("beside the executable: got %q, %v", got, err)
	}
}

func program(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "tapestry-test-program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return path
}
