package udprelay

import (
	"errors"

	"golang.org/x/sys/unix"
)

// fate is what became of a datagram given to the kernel.
type fate uint8

const (
	sent     fate = iota
	busy          // no room
	tooBig        // this one, or an earlier one on the way
	notWhole      // not as a superframe
	failed        // this one, or an earlier one
)

// errNotWhole asks for the segments of a superframe one by one.
var errNotWhole = errors.New("no superframes on this way")

// fateOf reads the result of sendmsg, of a superframe or not.
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
