package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// shell runs a script, and returns the process ID that the script writes into a file when it is ready.
func shell(t *testing.T, script string) (d *Daemon, pid int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pid")
	d, err := StartDaemon(nil, exec.Command("sh", "-c", script, file), func(ctx context.Context) error {
		return Eventually(ctx, func(context.Context) error {
			b, err := os.ReadFile(file)
			if err == nil {
				_, err = fmt.Sscanf(string(b), "%d\n", &pid)
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, pid
}

// gone waits for the end of a process that is not a child of this one.
func gone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	err := Eventually(ctx, func(context.Context) error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		return fmt.Errorf("process %d: %s, %w", pid, stat, err)
	})
	if err != nil {
		t.Error(err)
	}
}

// The processes that the program started end with it. So does a program that never listens.
func TestDaemonEnds(t *testing.T) {
	for name, script := range map[string]string{
		"with its children": `sleep 100 & echo $! >$0; wait`,
		"by force":          `trap "" TERM; echo $$ >$0; while :; do sleep 0.1; done`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, pid := shell(t, script)
			for range 2 {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			gone(t, pid)
		})
	}
}

func TestDaemonThatDoesNotStart(t *testing.T) {
	start := time.Now()
	_, err := StartDaemon(nil, exec.Command("sh", "-c", "echo no such thing >&2; exit 3"), func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > startTimeout/2 {
		t.Errorf("its end was noticed after %v", took)
	}
	if _, err := StartDaemon(nil, exec.Command("/does/not/exist"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent program: %v", err)
	}
}

// A program that ended before Close cannot have been measured.
func TestDaemonThatEndsByItself(t *testing.T) {
	d, pid := shell(t, `trap "echo tired >&2; exit 4" TERM; echo $$ >$0; while :; do sleep 0.1; done`)
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	if err := d.Close(); err == nil || !strings.Contains(err.Error(), "ended by itself") || !strings.Contains(err.Error(), "tired") {
		t.Errorf("got %v", err)
	}
}

func TestListening(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(freeport.Of(t))})
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	if err := Listening(nil, addr)(t.Context()); err != nil {
		t.Error(err)
	}
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Listening(nil, addr)(ctx); err == nil {
		t.Error("nobody listens")
	}
}
