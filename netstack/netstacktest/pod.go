package netstacktest

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"tapestry.dev/tapestry/netstack/packet"
)

// Pod plays a pod's kernel behind a Device: another gVisor stack, without offloads.
type Pod struct {
	stack *stack.Stack
	link  *channel.Endpoint
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// WithoutSACK makes the pod's later connections do without selective acknowledgements. gVisor never sends again what
// was acknowledged so, though its receiver may drop it (RFC 2018 8); Linux does.
func (p *Pod) WithoutSACK() {
	off := tcpip.TCPSACKEnabled(false)
	if err := p.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &off); err != nil {
		panic(err.String()) // the option exists
	}
}

// NewPod starts a pod on dev with these addresses. mtu is in bytes.
func NewPod(dev *Device, mac, router packet.MAC, mtu int, addrs ...netip.Addr) (*Pod, error) {
	p := &Pod{link: channel.New(1024, uint32(mtu), "")}
	p.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := p.stack.CreateNIC(1, p.link); err != nil {
		return nil, fmt.Errorf("create the pod's NIC: %s", err)
	}
	for _, a := range addrs {
		pa := tcpip.ProtocolAddress{Protocol: family(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := p.stack.AddProtocolAddress(1, pa, stack.AddressProperties{}); err != nil {
			return nil, fmt.Errorf("add the pod's address: %s", err)
		}
	}
	p.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.done.Add(2)
	go func() {
		defer p.done.Done()
		for pkt := p.link.ReadContext(ctx); pkt != nil; pkt = p.link.ReadContext(ctx) {
			f := make([]byte, packet.HeadLen)
			copy(f[packet.VNetHdrLen:], router[:])
			copy(f[packet.VNetHdrLen+6:], mac[:])
			binary.BigEndian.PutUint16(f[packet.HeadLen-2:], uint16(pkt.NetworkProtocolNumber))
			view := pkt.ToView()
			dev.Send(append(f, view.AsSlice()...))
			view.Release()
			pkt.DecRef()
		}
	}()
	go func() {
		defer p.done.Done()
		for {
			select {
			case f := <-dev.Frames():
				p.inject(f)
			case <-ctx.Done():
				return
			}
		}
	}()
	return p, nil
}

// inject passes a superframe to the pod in whole segments with complete checksums, as its kernel would see them.
func (p *Pod) inject(f []byte) {
	var parsed packet.Packet
	if parsed.ParseFrame(f) != packet.Good {
		return
	}
	var seg packet.Segmenter
	seg.Reset(&parsed, nil)
	for {
		b := make([]byte, seg.Size())
		n := seg.Next(b)
		if n == 0 {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[:n])})
		p.link.InjectInbound(tcpip.NetworkProtocolNumber(parsed.EtherType), pkt)
		pkt.DecRef()
	}
}

// Listen opens a TCP listener in the pod.
func (p *Pod) Listen(at netip.AddrPort) (net.Listener, error) {
	return gonet.ListenTCP(p.stack, full(at), family(at.Addr()))
}

// ListenPacket opens a UDP socket in the pod.
func (p *Pod) ListenPacket(at netip.AddrPort) (net.PacketConn, error) {
	local := full(at)
	c, err := gonet.DialUDP(p.stack, &local, nil, family(at.Addr()))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Dial connects from the pod over network, "tcp" or "udp".
func (p *Pod) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network == "udp" {
		remote := full(to)
		c, err := gonet.DialUDP(p.stack, nil, &remote, family(to.Addr()))
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	c, err := gonet.DialContextTCP(ctx, p.stack, full(to), family(to.Addr()))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close stops the pod.
func (p *Pod) Close() {
	p.stop()
	p.done.Wait()
	p.stack.Close()
	p.stack.Wait()
}

func full(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}
}

func family(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
