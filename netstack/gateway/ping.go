package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tapestry.dev/tapestry/netstack/packet"
)

// pinger carries pods' echo requests to the outside over unprivileged ping sockets (net.ipv4.ping_group_range). The
// stack cannot: being promiscuous it would answer them itself.
type pinger struct {
	mu    sync.Mutex // guards known
	known map[pingKey]*pingFlow
}

const (
	maxPings = 1024
	pingIdle = 30 * time.Second
)

type pingKey struct {
	pod, to netip.Addr
	id      uint16
}

type pingFlow struct {
	pingKey
	conn net.PacketConn
}

// Ping sends a pod's echo request, not a fragment, to the outside. The kernel replaces the identifier by one of its own,
// per socket; replies come back through Options.Send. The error says why it could not be sent.
func (g *Gateway) Ping(p *packet.Packet) error {
	if len(p.IP) < p.L4+8 {
		return errors.New("the echo is truncated")
	}
	k := pingKey{p.Tuple.Src.Netip(), p.Tuple.Dst.Netip(), p.Tuple.SrcPort}
	f, err := g.pingFlow(k)
	if err != nil {
		return err
	}
	_, err = f.conn.WriteTo(p.IP[p.L4:], &net.UDPAddr{IP: k.to.AsSlice()})
	return err
}

var errTooManyPings = errors.New("too many pings at once")

func (g *Gateway) pingFlow(k pingKey) (*pingFlow, error) {
	g.pings.mu.Lock()
	defer g.pings.mu.Unlock()
	if f := g.pings.known[k]; f != nil {
		return f, nil
	}
	if len(g.pings.known) >= maxPings {
		return nil, errTooManyPings
	}
	network, any := "udp4", "0.0.0.0"
	if k.to.Is6() {
		network, any = "udp6", "::"
	}
	conn, err := icmp.ListenPacket(network, any)
	if err != nil {
		return nil, err
	}
	f := &pingFlow{k, conn}
	if !g.spawn(func() { g.answerPings(f) }) {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	g.pings.known[k] = f
	return f, nil
}

// answerPings brings the replies of one pod's ping back until it was idle.
func (g *Gateway) answerPings(f *pingFlow) {
	stop := context.AfterFunc(g.ctx, func() { _ = f.conn.Close() })
	defer stop()
	defer func() {
		g.pings.mu.Lock()
		delete(g.pings.known, f.pingKey)
		g.pings.mu.Unlock()
		_ = f.conn.Close()
	}()
	buf := make([]byte, 65535)
	for {
		_ = f.conn.SetReadDeadline(time.Now().Add(pingIdle))
		n, from, err := f.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		ua, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		if a, _ := netip.AddrFromSlice(ua.IP); a.Unmap() != f.to {
			continue
		}
		if ip := f.reply(buf[:n]); ip != nil {
			g.sendIP(ip, packet.VNetHdr{})
		}
	}
}

// reply makes the packet the pod gets out of the echo reply the host got.
func (f *pingFlow) reply(echo []byte) []byte {
	if len(echo) < 8 {
		return nil
	}
	echo[4], echo[5] = byte(f.id>>8), byte(f.id)
	if f.to.Is4() {
		if echo[0] != byte(ipv4.ICMPTypeEchoReply) {
			return nil
		}
		h := header.ICMPv4(echo)
		h.SetChecksum(0)
		h.SetChecksum(header.ICMPv4Checksum(h, 0))
		return append(ip4Header(f.to, f.pod, packet.ICMPv4, len(echo)), echo...)
	}
	if echo[0] != byte(ipv6.ICMPTypeEchoReply) {
		return nil
	}
	h := header.ICMPv6(echo)
	h.SetChecksum(0)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: h[:8], Src: toAddress(f.to), Dst: toAddress(f.pod),
		PayloadCsum: checksum.Checksum(echo[8:], 0), PayloadLen: len(echo) - 8,
	}))
	return append(ip6Header(f.to, f.pod, packet.ICMPv6, len(echo)), echo...)
}

func ip4Header(src, dst netip.Addr, proto packet.Proto, payload int) []byte {
	ip := make(header.IPv4, header.IPv4MinimumSize, header.IPv4MinimumSize+payload)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + payload), TTL: 64, Protocol: uint8(proto),
		SrcAddr: toAddress(src), DstAddr: toAddress(dst),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return ip
}

func ip6Header(src, dst netip.Addr, proto packet.Proto, payload int) []byte {
	ip := make(header.IPv6, header.IPv6MinimumSize, header.IPv6MinimumSize+payload)
	ip[0] = 6 << 4
	ip.SetPayloadLength(uint16(payload))
	ip.SetNextHeader(uint8(proto))
	ip.SetHopLimit(64)
	ip.SetSourceAddress(toAddress(src))
	ip.SetDestinationAddress(toAddress(dst))
	return ip
}
