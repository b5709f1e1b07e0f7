package process

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// life returns a Start function that runs a command in this namespace and without a shim.
func life(argv ...string) func() (*Process, error) {
	return func() (*Process, error) {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return &Process{cmd: cmd}, cmd.Start()
	}
}

// TestDaemon goes through everything that may happen to a daemon that works.
func TestDaemon(t *testing.T) {
	began, ended := make(chan struct{}, 8), make(chan string, 8)
	d := NewDaemon(Options{
		Name: "the sleeper", Log: slog.New(slog.DiscardHandler), Start: life("sleep", "1000"), Worked: func() bool { return true },
		Began: func() { began <- struct{}{} }, Ended: func(why string) { ended <- why },
	})
	defer d.Close()
	if err := d.Signal(syscall.SIGTERM, false); err == nil || err.Error() != "the sleeper is not running" {
		t.Errorf("a signal before it lives: %v", err)
	}
	d.Run()
	<-began
	first, _ := d.Running()
	if err := d.Signal(syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if why := <-ended; why != "the sleeper ended with exit code 137" {
		t.Errorf("it is said to have ended so: %s", why)
	}
	<-began
	if second, restarts := d.Running(); second == 0 || second == first || restarts != 1 {
		t.Errorf("after it was killed: process %d, before %d, %d restarts", second, first, restarts)
	}
	if err := d.Signal(syscall.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	<-ended
	if pid, _ := d.Running(); pid != 0 {
		t.Errorf("told to stay down, it is process %d", pid)
	}
	select {
	case <-began:
		t.Error("told to stay down, it was started")
	default:
	}
	d.Resume()
	<-began
	last, _ := d.Running()
	d.Close()
	if err := syscall.Kill(last, 0); err != syscall.ESRCH {
		t.Errorf("process %d outlives Close: %v", last, err)
	}
}

// TestSucceed: the next process is started beside the one that runs, and takes its place when it is ready and the other
// one has ended.
func TestSucceed(t *testing.T) {
	began, ended := make(chan struct{}, 8), make(chan string, 8)
	d := NewDaemon(Options{
		Name: "the sleeper", Log: slog.New(slog.DiscardHandler), Start: life("sleep", "1000"), Worked: func() bool { return true },
		Began: func() { began <- struct{}{} }, Ended: func(why string) { ended <- why },
	})
	defer d.Close()
	ready := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	if err := d.Succeed(life("sleep", "1001"), ready(nil)); err == nil {
		t.Error("nobody was replaced")
	}
	d.Run()
	<-began
	first, _ := d.Running()
	unfit := errors.New("unfit")
	var tried *Process
	try := func() (p *Process, err error) { tried, err = life("sleep", "1002")(); return tried, err }
	if err := d.Succeed(try, ready(unfit)); err != unfit {
		t.Errorf("a successor that does not become ready: %v", err)
	}
	if err := syscall.Kill(tried.PID(), 0); err != syscall.ESRCH {
		t.Errorf("a successor that does not become ready lives on: %v", err)
	}
	if pid, _ := d.Running(); pid != first {
		t.Errorf("process %d runs, want %d", pid, first)
	}
	var next *Process
	succeed := func() (p *Process, err error) { next, err = life("sleep", "1003")(); return next, err }
	beside := func(context.Context) error {
		if pid, _ := d.Running(); pid != first {
			t.Errorf("process %d runs while its successor starts, want %d", pid, first)
		}
		return nil
	}
	if err := d.Succeed(succeed, beside); err != nil {
		t.Fatal(err)
	}
	if why := <-ended; why != "the sleeper ended with exit code 143" {
		t.Errorf("it is said to have ended so: %s", why)
	}
	<-began
	if pid, restarts := d.Running(); pid != next.PID() || restarts != 1 {
		t.Errorf("process %d runs after %d restarts, want %d after 1", pid, restarts, next.PID())
	}
	d.Close()
	if err := syscall.Kill(next.PID(), 0); err != syscall.ESRCH {
		t.Errorf("process %d outlives Close: %v", next.PID(), err)
	}
}

// TestDaemonThatFails: a daemon that cannot be started is tried less and less often.
func TestDaemonThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		d := NewDaemon(Options{
			Name: "the missing", Log: slog.New(slog.DiscardHandler), Worked: func() bool { return false }, Began: func() {},
			Start: func() (*Process, error) { tries.Add(1); return nil, exec.ErrNotFound },
			Ended: func(why string) {
				if !strings.Contains(why, exec.ErrNotFound.Error()) {
					t.Errorf("it is said to have ended so: %s", why)
				}
			},
		})
		d.Run()
		// 50 ms, 100 ms, ... 3.2 s add up to 6.35 s. After that each wait is 5 s.
		time.Sleep(6300 * time.Millisecond)
		synctest.Wait()
		if n := tries.Load(); n != 7 {
			t.Errorf("%d tries in 6.3 s, want 7", n)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if n := tries.Load(); n != 11 {
			t.Errorf("%d tries in 26.3 s, want 11", n)
		}
		d.Close()
	})
}
