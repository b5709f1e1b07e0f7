package talk

import (
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// wantDestination makes the socket report the destination address of every datagram. A socket of both families reports
// IPv4 addresses in either form.
func wantDestination(c *net.UDPConn) error {
	err4 := ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst, true)
	err6 := ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst, true)
	if err4 != nil && err6 != nil {
		return err6
	}
	return nil
}

// destination returns the destination address in control messages.
func destination(oob []byte) netip.Addr {
	var m6 ipv6.ControlMessage
	if m6.Parse(oob) == nil && m6.Dst != nil {
		if a, ok := netip.AddrFromSlice(m6.Dst); ok {
			return a
		}
	}
	var m4 ipv4.ControlMessage
	if m4.Parse(oob) == nil && m4.Dst != nil {
		if a, ok := netip.AddrFromSlice(m4.Dst); ok {
			return a.Unmap()
		}
	}
	return netip.IPv6Unspecified()
}

// source returns the control message that makes a datagram leave from an address.
func source(a netip.Addr) []byte {
	if a.IsUnspecified() {
		return nil
	}
	if a.Unmap().Is4() {
		return (&ipv4.ControlMessage{Src: net.IP(a.Unmap().AsSlice())}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: net.IP(a.AsSlice())}).Marshal()
}
