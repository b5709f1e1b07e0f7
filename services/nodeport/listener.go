package nodeport

import (
	"context"
	"net"
)

// Listener opens sockets on the host. Networks are tcp4, tcp6, udp4 and udp6.
type Listener interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
	// Release is called before a socket is closed that is not wanted any longer or has failed, but not when the Proxy
	// is closed: then the next one may want it.
	Release(network, address string)
}

// kernel opens sockets that nobody else has.
type kernel struct{ net.ListenConfig }

func (*kernel) Release(string, string) {}
