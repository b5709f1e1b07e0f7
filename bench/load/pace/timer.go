package pace

import (
	"cmp"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timer is more exact than the time package. Sleeps of the time package end up to a millisecond late on an idle
// machine, since epoll_wait(2) counts in milliseconds. A Timer is a descriptor, which wakes its goroutine as a packet
// does.
type Timer struct {
	file *os.File
	raw  syscall.RawConn
}

// NewTimer makes a Timer for one goroutine at a time.
func NewTimer() (*Timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	t := &Timer{file: os.NewFile(uintptr(fd), "timer")}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	return t, nil
}

// Wait returns after d, or with an error when another goroutine closes the Timer meanwhile.
func (t *Timer) Wait(d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))} // 0 would disarm it
	var failed error
	err := t.raw.Control(func(fd uintptr) { failed = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	if err := cmp.Or(err, failed); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	if _, err := t.file.Read(make([]byte, 8)); err != nil { // the value read says how often the timer went off
		return fmt.Errorf("wait for a timer: %w", err)
	}
	return nil
}

// Close ends a Wait as well.
func (t *Timer) Close() error { return t.file.Close() }
