package hostproxy

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"tapestry.dev/tapestry/fdpass"
)

// unixPrefix begins an address that is the path of a Unix socket.
const unixPrefix = "unix:"

// Check returns an error if addr is neither an address and port of the loopback interface nor unix: and an absolute
// path. Nobody but processes of this node may be able to connect.
func Check(addr string) error {
	if path, is := strings.CutPrefix(addr, unixPrefix); is {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%q: expected the whole path of a socket, like unix:/run/tapestry/proxy.sock", addr)
		}
		return nil
	}
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("%q: expected an address of localhost and a port, like 127.0.0.1:1080, or unix: and a path, since nobody else may come in", addr)
	}
	return nil
}

// Listen listens at an address that passes Check.
func Listen(addr string) (net.Listener, error) {
	if err := Check(addr); err != nil {
		return nil, err
	}
	if path, is := strings.CutPrefix(addr, unixPrefix); is {
		return fdpass.Listen(path, 0o666) // who may use it is asked of each connection
	}
	return net.Listen("tcp", addr)
}
