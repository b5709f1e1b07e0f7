// Package refusal decides how a pod is told that a destination outside cannot be reached: by the ICMP error that a
// router on the path would send. The node learns of it from the errors of its host sockets.
package refusal

import (
	"errors"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Kind returns the ICMP error that corresponds to an error of a host socket. ok is false for errors that concern only
// the node itself, or say nothing of the path, such as a time-out. Then the pod is told nothing and tries again.
func Kind(err error) (kind packet.ICMPError, ok bool) {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return 0, false
	}
	switch errno {
	case unix.ECONNREFUSED, unix.ENOPROTOOPT:
		return packet.PortUnreachable, true
	case unix.ENETUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		// The last two mean that the host has no address of the family, or does not support the family.
		return packet.NetUnreachable, true
	case unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENONET:
		return packet.HostUnreachable, true
	case unix.EACCES, unix.EPERM:
		return packet.AdminProhibited, true
	}
	return 0, false
}
