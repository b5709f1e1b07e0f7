package nodeport

import (
	"errors"
	"io"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// plainDoor is a Door of the standard library, which knows no backends but those that are dialled.
type plainDoor struct {
	*net.UDPConn
	is4 bool
}

var _ Door = plainDoor{}

func newPlainDoor(c *net.UDPConn) (Door, error) {
	d := plainDoor{c, c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is4()}
	if d.is4 {
		return d, ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst, true)
	}
	return d, ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst, true)
}

func (d plainDoor) Serve(ask func(netip.AddrPort, netip.Addr) io.Closer) error {
	buf, oob := make([]byte, maxDatagram), make([]byte, 128)
	for {
		n, oobn, _, client, err := d.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return err
		}
		if to, ok := ask(netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), d.local(oob[:oobn])).(io.Writer); ok {
			to.Write(buf[:n])
		}
	}
}

// local returns the local address of a datagram, out of its control messages.
func (d plainDoor) local(oob []byte) netip.Addr {
	all, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range all {
		if d.is4 {
			return netip.AddrFrom4([4]byte(m.Data[4:8]))
		}
		if a := netip.AddrFrom16([16]byte(m.Data[:16])); !a.IsMulticast() {
			return a
		}
	}
	return netip.Addr{}
}

func (d plainDoor) Exchange(netip.AddrPort, netip.Addr, netip.AddrPort, netip.AddrPort, func(error)) (io.Closer, error) {
	return nil, errors.ErrUnsupported
}

func (d plainDoor) Answer(b []byte, client netip.AddrPort, local netip.Addr) {
	oob := (&ipv6.ControlMessage{Src: local.AsSlice()}).Marshal()
	if d.is4 {
		oob = (&ipv4.ControlMessage{Src: local.AsSlice()}).Marshal()
	}
	d.WriteMsgUDPAddrPort(b, oob, client)
}
