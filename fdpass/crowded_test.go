package fdpass

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crowdedEnv is set in the process that TestCrowded runs as a user without capabilities, to a directory of its own.
const crowdedEnv = "FDPASS_TEST_CROWDED"

// lonely is a user who has no other process.
const lonely = 51999

// While other processes of the user have too many descriptors under way, a message with descriptors waits. When that
// lasts, the error says what it is.
func TestCrowded(t *testing.T) {
	if dir := os.Getenv(crowdedEnv); dir != "" {
		crowded(t, dir)
		return
	}
	dir, err := os.MkdirTemp("", "crowded")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "test") // the directory of the original may be closed to others
	text, err := os.ReadFile(exe)
	if err == nil {
		err = os.WriteFile(copied, text, 0o755)
	}
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, "-test.run=^TestCrowded$", "-test.v")
	cmd.Env, cmd.Dir = append(os.Environ(), crowdedEnv+"="+dir), dir
	if os.Geteuid() == 0 { // the limit is not for root, of the machine and not of a user namespace
		if b, err := os.ReadFile("/proc/self/uid_map"); err == nil && strings.Fields(string(b))[2] == "4294967295" {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: lonely, Gid: lonely}}
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func crowded(t *testing.T, dir string) {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: 100}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ln, Options{}, echo) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	c, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	rights := unix.UnixRights(fd, fd, fd, fd, fd, fd, fd, fd, fd, fd)
	for { // descriptors that nobody receives
		if err := unix.Sendmsg(pair[1], []byte("x"), rights, nil, unix.MSG_DONTWAIT); errors.Is(err, unix.ETOOMANYREFS) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Send("x", fd); !errors.Is(err, unix.ETOOMANYREFS) || !strings.Contains(err.Error(), "a user of its own") {
		t.Fatalf("while nobody receives: %v", err)
	}
	time.AfterFunc(10*crowdedPause, func() { CloseAll(pair[:1]); CloseAll(pair[1:]) })
	var n int
	if _, err := c.Call(ctx, "x", &n, fd); err != nil || n != 1 {
		t.Errorf("when they are gone: %d descriptors came, %v", n, err)
	}
}
