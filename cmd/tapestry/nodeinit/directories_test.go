package nodeinit

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestMayStay(t *testing.T) {
	s := &step{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	empty, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, dir string
		err       error
		want      bool
	}{
		{"mounted", empty, syscall.EBUSY, true},
		{"in somebody else's", empty, &os.PathError{Op: "unlinkat", Path: empty, Err: syscall.EACCES}, true},
		{"not emptied", full, syscall.EACCES, false},
		{"not to be read", filepath.Join(empty, "none"), syscall.EACCES, false},
		{"broken", empty, errors.New("input/output error"), false},
	} {
		if got := s.mayStay(c.dir, c.err); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAllowPings(t *testing.T) {
	for _, c := range []struct{ before, after string }{
		{"1\t0\n", everyGroup},
		{"0\t65531\n", everyGroup},
		{"65533 70000", everyGroup},
		{"0\t65535\n", "0\t65535\n"}, // as on a rootless node
		{"65532 65532", "65532 65532"},
		{"0\t2147483647\n", "0\t2147483647\n"},
		{"", everyGroup},
	} {
		file := filepath.Join(t.TempDir(), "ping_group_range")
		if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := allowPings(file, 65532); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != c.after {
			t.Errorf("%q: %q, %v, want %q", c.before, got, err, c.after)
		}
	}
}
