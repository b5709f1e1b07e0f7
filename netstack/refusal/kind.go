// Package refusal says how a pod is told that somebody outside cannot be reached: as a router on the way would tell it.
// What the node knows of it are the errors of its host sockets.
package refusal

import (
	"errors"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Kind gives the ICMP error that says the same as an error of a host socket. It is false for what is nobody's fault but
// the node's or says nothing of the way, as a time-out: then the pod is told nothing, and tries again.
func Kind(err error) (packet.ICMPError, bool) {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return 0, false
	}
	switch errno {
	case unix.ECONNREFUSED, unix.ENOPROTOOPT:
		return packet.PortUnreachable, true
	case unix.ENETUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		// The last two are of hosts without an address of the family, and without the family.
		return packet.NetUnreachable, true
	case unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENONET:
		return packet.HostUnreachable, true
	case unix.EACCES, unix.EPERM:
		return packet.AdminProhibited, true
	}
	return 0, false
}
