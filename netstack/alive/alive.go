// Package alive asks the far end of a host socket's TCP connection whether it lives, when a pod asks.
//
// A pod sends keep-alive probes (RFC 9293 3.8.4) on a connection that is joined with a host socket. These probes are
// meant for the far end, and nobody in between must answer them. So the kernel is made to send a probe of its own at
// once, by an idle time that has already passed, and the pod is answered when the kernel has heard from the far end
// since. A far end that is gone stays silent, and the pod notices at its own pace.
package alive

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// By itself the kernel probes a host socket that has been silent for idle, in seconds, waits for interval between
	// probes, in seconds, and gives up after count of them. These are the values of the standard library.
	idle, interval, count = 15, 15, 9
	// most is the largest count the kernel accepts. With it the pod decides when to give up.
	most = 127
	// now is an idle time, in seconds, that has passed already: it is the shortest that the kernel accepts, and pods
	// cannot probe earlier.
	now = 1
	// If the far end was heard within fresh, this is answer enough. slack is how far the kernel's clock may be behind
	// (a jiffy, 10 ms at most).
	fresh, slack = 500 * time.Millisecond, 20 * time.Millisecond
	// first is the time until the first look for an answer. The time between looks doubles up to last.
	first, last = 2 * time.Millisecond, 500 * time.Millisecond
	// patience is how long an answer is awaited. A pod asks again when its own time is up.
	patience = 10 * time.Second
)

// Keep makes the kernel detect by itself when the far end of a host socket is gone.
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

// Question is a question to the far end. The zero Question was not asked.
type Question struct {
	asked time.Time
	pause time.Duration
}

// Ask asks the far end of fd. If it reports true, the far end was heard just now, and there is nothing to wait for.
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

// Open reports whether the question waits for an answer.
func (q *Question) Open() bool { return !q.asked.IsZero() }

// Pause returns how long to wait before the next Look.
func (q *Question) Pause() time.Duration { return q.pause }

// Look reports whether the far end has answered. It closes the question when there is an answer, or none is to be
// expected any more.
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

// silentFor returns how long ago the far end was last heard.
func silentFor(fd int) (time.Duration, bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return time.Duration(info.Last_ack_recv) * time.Millisecond, true
}
