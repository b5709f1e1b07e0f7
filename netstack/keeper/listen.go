package keeper

import (
	"errors"
	"net"
)

// ListenPrefix, followed by an address such as ":80", is the key of a listening TCP socket on a port that takes a
// capability to bind. An init step makes the socket and leaves it there for the agent; both are given the same address.
const ListenPrefix = "listen/"

// Listener returns the host's listening TCP socket for an address: the one that an init step left there, or a new one.
// Connections to a kept one wait while there is no agent.
func (h *Holdings) Listener(addr string) (net.Listener, error) {
	it, err := h.Get(ListenPrefix + addr)
	if errors.Is(err, ErrNotFound) {
		return net.Listen("tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	defer it.File.Close()
	return net.FileListener(it.File)
}
