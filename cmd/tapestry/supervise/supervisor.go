package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Signals that end the supervisor along with the command, and signals that are only passed on.
var (
	endSignals  = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP}
	passSignals = []os.Signal{unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}
)

// supervisor runs one command again and again.
type supervisor struct {
	path string
	argv []string
	log  *slog.Logger

	signals  chan os.Signal
	children chan os.Signal // SIGCHLD
	ending   bool           // an end signal has arrived
	status   int            // exit status of the last run
}

// run runs the command until an end signal arrives, and returns the exit status of its last run. The error is not nil
// if the command could not be started. ctx ends with the first end signal, too.
func (s *supervisor) run(ctx context.Context) (int, error) {
	// The kernel kills the command when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG). The goroutine
	// keeps its thread until the process ends.
	runtime.LockOSThread()
	// Processes whose parents have ended become children of this one, as they do anyway when it is process 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("adopt processes that are left behind: %w", err)
	}
	s.signals, s.children = make(chan os.Signal, 16), make(chan os.Signal, 1)
	signal.Notify(s.signals, append(endSignals, passSignals...)...)
	signal.Notify(s.children, unix.SIGCHLD)
	if err := ctx.Err(); err != nil { // its signal may have come before the channel was there
		return 1, err
	}
	var runs streak
	for life := (Life{}); ; life.Restarts++ {
		began := time.Now()
		served, why, err := s.once(life)
		switch {
		case err != nil && life.Restarts == 0:
			return 1, err
		case err != nil: // the machine may lack memory or processes for a while
			why = err.Error()
		}
		if s.ending {
			return s.status, nil
		}
		life.At, life.Why = time.Now(), why
		lasted := life.At.Sub(began)
		runs = runs.add(served, lasted)
		pause := runs.pause()
		s.log.Warn("the command ended and is started again", "why", why, "served", served, "after", lasted.Round(time.Millisecond), "restarts", life.Restarts+1, "pause", pause)
		if s.rest(pause); s.ending {
			return s.status, nil
		}
	}
}

// once runs the command once. It returns whether the command said that it served, and how it ended.
func (s *supervisor) once(life Life) (served bool, why string, err error) {
	told, tell, err := os.Pipe()
	if err != nil {
		return false, "", err
	}
	defer told.Close()
	pid, err := s.start(life, tell)
	if err != nil {
		tell.Close()
		return false, "", fmt.Errorf("start %s: %w", s.path, err)
	}
	tell.Close()
	for {
		select {
		case sig := <-s.signals:
			s.note(sig)
			// Only this goroutine reaps, so the process with this number is still the command.
			if err := unix.Kill(pid, sig.(unix.Signal)); err != nil {
				s.log.Warn("a signal was not passed on", "signal", sig, "err", err)
			}
		case <-s.children:
			if ws, ended := reap(pid); ended {
				s.status = exitStatus(ws)
				return hasServed(told), ending(ws), nil
			}
		}
	}
}

// start starts the command with tell as its descriptor 3.
func (s *supervisor) start(life Life, tell *os.File) (pid int, err error) {
	return syscall.ForkExec(s.path, s.argv, &syscall.ProcAttr{
		Env:   life.environ(os.Environ()),
		Files: []uintptr{0, 1, 2, tell.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
}

// rest waits before the next run, or until an end signal arrives.
func (s *supervisor) rest(pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for !s.ending {
		select {
		case sig := <-s.signals:
			s.note(sig)
		case <-s.children:
			reap(0)
		case <-timer.C:
			return
		}
	}
}

// note remembers that an end signal has arrived.
func (s *supervisor) note(sig os.Signal) {
	for _, end := range endSignals {
		s.ending = s.ending || sig == end
	}
}

// reap reaps all children that have ended. It returns how the one with this number ended, if it did.
func reap(pid int) (ws unix.WaitStatus, ended bool) {
	for {
		var w unix.WaitStatus
		switch n, err := unix.Wait4(-1, &w, unix.WNOHANG, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil || n <= 0: // no child is left, or none has ended
			return ws, ended
		case n == pid:
			ws, ended = w, true
		}
	}
}

// exitStatus returns the status of a shell for a process that ended so.
func exitStatus(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// ending says how a process ended.
func ending(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", ws.Signal(), ws.Signal())
	}
	return fmt.Sprintf("ended with status %d", ws.ExitStatus())
}

// hasServed reports whether the process that has ended had said that it served.
func hasServed(told *os.File) bool {
	if err := unix.SetNonblock(int(told.Fd()), true); err != nil {
		return false
	}
	n, _ := unix.Read(int(told.Fd()), make([]byte, 1)) // EAGAIN when another process still has the other end
	return n == 1
}
