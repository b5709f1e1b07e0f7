package udprelay

import (
	"errors"

	"golang.org/x/sys/unix"
)

// fate is the result of giving a datagram to the kernel.
type fate uint8

const (
	sent     fate = iota
	busy          // no room in the socket or the queue
	tooBig        // this datagram, or an earlier one on its path
	notWhole      // refused as a superframe
	failed        // this datagram, or an earlier one
)

// errNotWhole says that the segments of a superframe have to be sent one by one.
var errNotWhole = errors.New("the route or device accepts no superframes")

// fateOf interprets the result of sendmsg. super says whether a superframe was sent.
func fateOf(errno unix.Errno, super bool) fate {
	switch errno {
	case 0:
		return sent
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return busy
	case unix.EIO, unix.EINVAL:
		if super {
			return notWhole
		}
	case unix.EMSGSIZE:
		if super {
			return notWhole // some segments may fit where the longest does not
		}
		return tooBig
	}
	return failed
}
