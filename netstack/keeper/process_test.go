package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/await"
)

const childEnv = "KEEPER_TEST_CHILD"

// TestMain also plays the agent that is killed, and the other user.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child claims the lease, puts one descriptor, prints the result, and goes on listing.
func child(path string) {
	c, err := Dial(context.Background(), path)
	if err == nil {
		err = c.Claim(context.Background(), "n1")
	}
	if err == nil {
		var f *os.File
		if f, err = NewMemory("child", 4096); err == nil {
			f.WriteAt([]byte("of the child"), 0)
			err = c.Put("child", nil, f)
		}
	}
	fmt.Println("result:", err)
	// The kill comes in the middle of requests.
	for err == nil {
		var items []Item
		if items, err = c.List(); err == nil {
			closeItems(items)
		}
	}
	io.Copy(io.Discard, os.Stdin)
}

// spawn runs child and returns what it printed.
func spawn(t *testing.T, exe, path string, attr *syscall.SysProcAttr) (*exec.Cmd, string, error) {
	t.Helper()
	cmd := exec.Command(exe)
	cmd.Env, cmd.Stderr, cmd.SysProcAttr = append(os.Environ(), childEnv+"="+path), os.Stderr, attr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, line, nil
}

func TestHandoverAfterSIGKILL(t *testing.T) {
	_, path := start(t, Options{})
	c := dial(t, path)
	for range 10 {
		cmd, line, err := spawn(t, os.Args[0], path, nil)
		if err != nil || !strings.Contains(line, "result: <nil>") {
			t.Fatalf("%s %v", line, err)
		}
		want := fmt.Sprintf("an agent for node n1 is already running (pid %d); stop it first", cmd.Process.Pid)
		if err := c.Claim(t.Context(), "n1"); err == nil || err.Error() != want {
			t.Fatalf("got %v, want %s", err, want)
		}
		cmd.Process.Kill()
		cmd.Wait()
		next := dial(t, path)
		if err := next.Claim(t.Context(), "n1"); err != nil { // without waiting
			t.Fatal(err)
		}
		it, err := next.Get("child")
		if err != nil || content(t, it.File) != "of the child" {
			t.Fatal(err)
		}
		it.File.Close()
		next.Close()
	}
}

// logBuffer collects log lines of several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestRefusedUser runs a keeper for a user that is not the test's.
func TestRefusedUser(t *testing.T) {
	var log logBuffer
	k, path := start(t, Options{UIDs: []uint32{uint32(os.Geteuid()) + 1}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 3 {
		c := dial(t, path)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("user %d may not use", os.Geteuid())
		if err := c.Put("k", nil, w); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		w.Close()
		r.SetReadDeadline(time.Now().Add(await.Patience))
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the descriptor is not closed: %v", err)
		}
		r.Close()
	}
	if _, err := k.Get("k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("it was kept: %v", err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines were logged, want 1:\n%s", n, log.String())
	}
}

// TestAnotherUser lets a process of another user try, where the test may start one. TestRefusedUser covers the same
// refusal everywhere.
func TestAnotherUser(t *testing.T) {
	_, path := start(t, Options{})
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "child")
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	// A process that gets past the file modes is still refused.
	for _, p := range []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path)), dir} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	_, line, err := spawn(t, exe, path, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}})
	want := "user 65533 may not use"
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		_, line, err = spawn(t, exe, path, nil) // the test has only one user
		want = "result: <nil>"
	}
	if err != nil || !strings.Contains(line, want) {
		t.Errorf("%s %v, want %q", line, err, want)
	}
}
