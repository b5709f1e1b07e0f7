package nodeinit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/userns"
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

// TestJudge: files of root and of the agent's user may be in its directories.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		owner uint32
		user  int
		ok    bool
	}{
		{0, 60820, true}, {60820, 60820, true}, {65532, 60820, false}, {60820, 65532, false}, {1<<32 - 1, 60820, false}, {65532, 0, false},
	} {
		err := judge(&unix.Stat_t{Uid: c.owner, Gid: 7}, c.user)
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), fmt.Sprintf("keep the user and the group (values user=%d,group=7 of the chart)", c.owner)) {
			t.Errorf("a file of user %d, the agent is %d: %v", c.owner, c.user, err)
		}
	}
}

// TestBelong: a step that would give the directories to another user than the one that Tapestry is installed as changes
// nothing.
func TestBelong(t *testing.T) {
	other := userns.Mapped(65532) // root itself, where no other user is to be had
	state, run := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	directories := func(args ...string) error {
		app := cli.App{Commands: []*cli.Command{Directories()}, ExitErrHandler: func(*cli.Context, error) {}}
		return app.Run(append([]string{"tapestry", "directories"}, args...))
	}
	mode := func() os.FileMode {
		st, err := os.Stat(run)
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode().Perm()
	}
	socket := filepath.Join(run, "keeper.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(socket, other, -1); err != nil {
		t.Fatal(err)
	}
	err := directories("--uid=60820", state, run)
	if other != 0 && (err == nil || !strings.Contains(err.Error(), strconv.Quote(socket)+": it is user 65532's") || mode() != 0o700) {
		t.Errorf("a keeper of another user: %v, and the directory is %v", err, mode())
	}
	if _, missing := os.Stat(state); other != 0 && !errors.Is(missing, fs.ErrNotExist) {
		t.Errorf("a directory was made: %v", missing)
	}
	for _, args := range [][]string{{fmt.Sprintf("--uid=%d", other)}, {}} {
		if err := os.Chmod(run, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := directories(append(args, state, run)...); err != nil || mode() != 0o770 {
			t.Errorf("%v: %v, and the directory is %v", args, err, mode())
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
