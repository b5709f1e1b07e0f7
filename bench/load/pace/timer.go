package pace

import (
	"cmp"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timer waits more exactly than the time package, whose sleeps end up to a millisecond late when nothing else happens,
// as epoll_wait(2) counts in milliseconds: it is a descriptor, which wakes its goroutine as a packet would.
type Timer struct {
	file *os.File
	raw  syscall.RawConn
}

// NewTimer makes one, for one goroutine at a time.
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

// Wait returns after d; with an error when the Timer is closed, which another goroutine may do meanwhile.
func (t *Timer) Wait(d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))} // 0 would disarm it
	var failed error
	err := t.raw.Control(func(fd uintptr) { failed = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	if err := cmp.Or(err, failed); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	if _, err := t.file.Read(make([]byte, 8)); err != nil { // how often it went off
		return fmt.Errorf("wait for a timer: %w", err)
	}
	return nil
}

// Close ends a Wait, too.
func (t *Timer) Close() error { return t.file.Close() }
