package nodeinit

import (
	"fmt"
	"net"
	"strings"

	"tapestry.dev/tapestry/netstack/keeper"
)

// cutListen returns the address in the key of a kept listener.
func cutListen(key string) (string, bool) { return strings.CutPrefix(key, keeper.ListenPrefix) }

// leaveListener listens on addr and makes the keeper hold the socket.
func leaveListener(kept *keeper.Client, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	defer f.Close()
	return kept.Put(keeper.ListenPrefix+addr, nil, f)
}
