package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/lab/rpc"
)

// DefaultStateDir returns the folder that has the folders of this user's labs: below $XDG_RUNTIME_DIR, in /run for
// root, or in /tmp.
func DefaultStateDir() (string, error) {
	var tried []error
	candidates := []string{"/tmp/tapestry-" + strconv.Itoa(os.Getuid())}
	if os.Geteuid() == 0 {
		candidates = slices.Insert(candidates, 0, "/run/tapestry")
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		candidates = slices.Insert(candidates, 0, filepath.Join(dir, "tapestry"))
	}
	for _, dir := range candidates {
		labs := filepath.Join(dir, "labs")
		err := os.MkdirAll(filepath.Dir(dir), 0o700)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err == nil || errors.Is(err, fs.ErrExist) {
			err = ours(dir)
		}
		if err == nil {
			err = os.MkdirAll(labs, 0o700)
		}
		if err == nil {
			return labs, nil
		}
		tried = append(tried, err)
	}
	return "", fmt.Errorf("no place for the folder of a lab: %w: set XDG_RUNTIME_DIR to a folder of yours", errors.Join(tried...))
}

// ours returns an error unless a folder belongs to this user, who can write there, and to nobody else. In /tmp anybody
// could have made the folder.
func ours(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR { // a link may lead to a folder of ours now, and elsewhere next
		return fmt.Errorf("%s is no folder", dir)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s belongs to somebody else or is open to others", dir)
	}
	return unix.Access(dir, unix.W_OK)
}

// Dial connects to a lab that is up.
func Dial(name string) (*Client, error) {
	dir, err := DefaultStateDir()
	if err != nil {
		return nil, err
	}
	return DialIn(dir, name)
}

// DialIn is Dial for a lab whose folder is in stateDir.
func DialIn(stateDir, name string) (*Client, error) {
	if name == "" {
		name = DefaultName
	}
	c := &Client{Name: name, Dir: filepath.Join(stateDir, name)}
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	if _, err := c.Status(ctx); err != nil {
		if _, serr := os.Stat(c.Dir); serr == nil && !alive(c.Dir) {
			return nil, fmt.Errorf("lab %q has crashed: 'tapestry-lab down' removes its folder %s", name, c.Dir)
		}
		names, _ := Names(stateDir)
		hint := "none is up: start one with 'tapestry-lab up -f FILE'"
		if len(names) > 0 {
			hint = "these are: " + strings.Join(names, ", ")
		}
		return nil, fmt.Errorf("lab %q is not up; %s", name, hint)
	}
	return c, nil
}

// Names lists the labs with a folder in stateDir, including those that a crash left.
func Names(stateDir string) ([]string, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// DownIn takes a lab down and removes its folder, even after a crash of its supervisor.
func DownIn(ctx context.Context, stateDir, name string) error {
	dir := filepath.Join(stateDir, name)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("lab %q is not up: there is no %s", name, dir)
	}
	return (&Client{Name: name, Dir: dir}).Down(ctx)
}

// The first process of a lab is identified by its ID and its start time, since IDs are used again.

func writePID(dir string, pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(rpc.PIDFile(dir), []byte(fmt.Sprintf("%d %s\n", pid, start)), 0o600)
}

// openPID returns a descriptor of the lab's first process (pidfd_open(2)), which becomes readable when the process has
// ended. ok is false when the process is gone.
func openPID(dir string) (fd int, ok bool) {
	b, err := os.ReadFile(rpc.PIDFile(dir))
	if err != nil {
		return -1, false
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return -1, false
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		return -1, false
	}
	if fd, err = unix.PidfdOpen(pid, 0); err != nil {
		return -1, false
	}
	// The start time is read after the open, so the ID cannot have been used again in between.
	if start, err := startTime(pid); err != nil || start != f[1] {
		unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// startTime returns field 22 of /proc/pid/stat. The second field may contain anything.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "", errors.New("/proc/pid/stat is not as expected")
	}
	return f[19], nil
}

// alive reports whether the lab in dir is alive or just being started.
func alive(dir string) bool {
	if fd, ok := openPID(dir); ok {
		unix.Close(fd)
		return true
	}
	// A lab that has its folder but no process yet must be young.
	info, err := os.Stat(dir)
	_, perr := os.Stat(rpc.PIDFile(dir))
	return err == nil && errors.Is(perr, fs.ErrNotExist) && time.Since(info.ModTime()) < 2*time.Second
}

// awaitEnd waits until the process behind a pidfd has ended.
func awaitEnd(ctx context.Context, fd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 50)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}
