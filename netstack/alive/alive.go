// Package alive asks the far end of a host socket's TCP connection whether it lives, when a pod asks.
//
// A pod that sends keep-alive probes (RFC 9293 3.8.4) on a connection that is joined with a host socket means the far
// end, and must not be answered by whoever is in between. So the kernel is made to send a probe of its own at once, by
// an idle time that has passed already, and the pod is answered when the kernel has heard of the far end since. A far
// end that is gone is silent, and the pod finds out by its own schedule.
package alive

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// idle is how long a host socket is silent before its kernel asks by itself, interval how long it waits for an answer,
	// in seconds, and count how often it asks: the standard library's values.
	idle, interval, count = 15, 15, 9
	// most is the largest count: when to give up is then the pod's to say.
	most = 127
	// now is an idle time that has passed: the shortest that the kernel takes. Pods' cannot be shorter.
	now = 1
	// fresh is how long what was heard of the far end is answer enough, and slack what the kernel's clock is behind (a
	// jiffy of 10 ms at most).
	fresh, slack = 500 * time.Millisecond, 20 * time.Millisecond
	// first and last are how long it takes until it is looked for an answer at first, and from one look to the next in the
	// end.
	first, last = 2 * time.Millisecond, 500 * time.Millisecond
	// patience is how long it is looked for: a pod asks anew at the end of its own.
	patience = 10 * time.Second
)

// Keep has a host socket find out by itself that its far end is gone.
func Keep(fd int) error {
	for _, o := range [...]struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, interval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// Question is one that was asked. The zero Question was not.
type Question struct {
	asked time.Time
	pause time.Duration
}

// Ask asks the far end of fd. It reports whether the answer is known: then there is nothing to wait for.
func (q *Question) Ask(fd int, at time.Time) (answered bool) {
	if silence, ok := silentFor(fd); ok && silence < fresh {
		*q = Question{}
		return true
	}
	*q = Question{asked: at, pause: first}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, most)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, now)
	return false
}

// Open reports whether an answer is waited for.
func (q *Question) Open() bool { return !q.asked.IsZero() }

// Pause is how long to wait before the next look.
func (q *Question) Pause() time.Duration { return q.pause }

// Look reports whether the far end has answered. The question is no longer open then, or when there is nothing to be
// hoped for.
func (q *Question) Look(fd int, at time.Time) (answered bool) {
	since := at.Sub(q.asked)
	silence, ok := silentFor(fd)
	switch {
	case !ok || since > patience:
	case silence <= since+slack:
		answered = true
	default:
		q.pause = min(2*q.pause, last)
		return false
	}
	*q = Question{}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle)
	if answered {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count)
	}
	return answered
}

// silentFor is how long nothing was heard of the far end.
func silentFor(fd int) (time.Duration, bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return time.Duration(info.Last_ack_recv) * time.Millisecond, true
}
