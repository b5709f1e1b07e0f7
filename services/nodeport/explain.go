package nodeport

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// explain returns one sentence that says what is wrong with a port and what to do.
func explain(spec PortSpec, proto string, err error) string {
	kind, _, _ := strings.Cut(spec.Owner, " ")
	what := fmt.Sprintf("NodePort %d/%s", spec.Port, proto)
	switch {
	case kind == "Pod" && spec.Addr.IsUnspecified():
		what = fmt.Sprintf("hostPort %d/%s", spec.Port, proto)
	case kind == "Pod":
		what = fmt.Sprintf("hostPort %d/%s at %s", spec.Port, proto, spec.Addr)
	case spec.Addr.IsValid() && !spec.Addr.IsUnspecified() && !spec.Addr.IsLoopback(): // a load balancer's
		what = fmt.Sprintf("%s port %d/%s", spec.Addr, spec.Port, proto)
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("%s is taken on this host by another program; stop that program or give the %s another port; "+
			"until then it is tried again", what, kind)
	case errors.Is(err, errTooMany):
		return what + " is not opened, since the agent has no descriptors for more ports; raise its limit of open files (LimitNOFILE " +
			"of the container runtime), or have fewer NodePorts and hostPorts"
	case errors.Is(err, syscall.EACCES):
		return fmt.Sprintf("%s may not be opened by an unprivileged process; lower net.ipv4.ip_unprivileged_port_start or give the "+
			"%s a higher port", what, kind)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return what + " is at an address that this host does not have; until it has, it is tried again"
	}
	return fmt.Sprintf("%s cannot be opened and is tried again: %v", what, err)
}
