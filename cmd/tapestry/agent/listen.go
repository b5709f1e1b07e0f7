package agent

import (
	"errors"
	"net"

	"tapestry.dev/tapestry/netstack/keeper"
)

// hostListener gives the host socket for an address: the one that an init step with the capability for it left with the keeper,
// or a new one. Connections to a kept one wait while there is no agent.
func hostListener(kept *holdings, addr string) (net.Listener, error) {
	it, err := kept.Get(keeper.ListenPrefix + addr)
	if errors.Is(err, keeper.ErrNotFound) {
		return net.Listen("tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	defer it.File.Close()
	return net.FileListener(it.File)
}
