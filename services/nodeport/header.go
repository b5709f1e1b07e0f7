package nodeport

import (
	"io"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// header writes the header of the PROXY protocol, version 1 or 2, that tells a backend from where to where its client
// connected (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
func header(version uint8, from netip.AddrPort, to net.Addr, backend io.Writer) error {
	_, err := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(from), to).WriteTo(backend)
	return err
}
