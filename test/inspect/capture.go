// Package inspect looks at a network namespace from inside: what crosses an interface, and which packet filter rules
// the kernel has. The demo and the end-to-end tests run it in the namespaces of a lab.
package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Traffic is what a capture saw, by kind. A superframe counts as the number of packets that it becomes on a wire.
type Traffic struct {
	// WireGuardData counts WireGuard's transport messages, WireGuardOther its handshakes and cookies.
	WireGuardData, WireGuardOther int
	// ARP and ND count address resolution.
	ARP, ND int
	// Other counts everything else; Samples describes the first few.
	Other   int
	Samples []string
	// Canaries counts the frames that held the canary in clear text.
	Canaries int
}

const vnetHdrLen = 10

// Capture reads what crosses the interface until ctx ends; what has crossed it by then is counted, too. It calls ready
// when it listens. port is WireGuard's UDP port. Every frame is searched for canary.
func Capture(ctx context.Context, iface string, port uint16, canary []byte, ready func()) (Traffic, error) {
	var t Traffic
	fd, err := open(iface)
	if err != nil {
		return t, fmt.Errorf("capture on %s: %w", iface, err)
	}
	defer unix.Close(fd)
	ready()
	buf := make([]byte, 1<<17)
	for {
		flags, ended := 0, ctx.Err() != nil
		if ended {
			flags = unix.MSG_DONTWAIT
		}
		n, _, err := unix.Recvfrom(fd, buf, flags)
		switch {
		case errors.Is(err, unix.EAGAIN) && ended:
			return t, nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENETDOWN):
			return t, nil
		case err != nil:
			return t, fmt.Errorf("capture on %s: %w", iface, err)
		case n > vnetHdrLen+14:
			t.add(buf[:n], port, canary)
		}
	}
}

func open(iface string) (int, error) {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		return -1, err
	}
	all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, err
	}
	// The buffer must hold a burst. Exceeding the system's limit needs a capability that an ordinary user lacks; the
	// limit is enough then.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
	}
	// The virtio-net header says how many packets a superframe stands for.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: int64(20 * time.Millisecond / time.Microsecond)}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: i.Index}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// add counts one frame, which begins with its virtio-net header.
func (t *Traffic) add(frame []byte, port uint16, canary []byte) {
	segment := int(binary.LittleEndian.Uint16(frame[4:]))
	eth := frame[vnetHdrLen:]
	if len(canary) > 0 && bytes.Contains(eth, canary) {
		t.Canaries++
	}
	ip := eth[14:]
	switch binary.BigEndian.Uint16(eth[12:]) {
	case unix.ETH_P_ARP:
		t.ARP++
		return
	case unix.ETH_P_IP:
		if len(ip) >= 20 && ip[9] == unix.IPPROTO_UDP && t.addUDP(ip[int(ip[0]&15)*4:], port, segment) {
			return
		}
	case unix.ETH_P_IPV6:
		if len(ip) < 41 {
			break
		}
		if ip[6] == unix.IPPROTO_UDP && t.addUDP(ip[40:], port, segment) {
			return
		}
		if isND(ip) {
			t.ND++
			return
		}
	}
	t.Other++
	if len(t.Samples) < 5 {
		t.Samples = append(t.Samples, fmt.Sprintf("%x", eth[:min(len(eth), 60)]))
	}
}

// isND reports whether a packet is neighbour discovery, or a multicast report, which nodes send when they join a
// solicited-node group (RFC 4861, RFC 3810).
func isND(ip []byte) bool {
	next, rest := ip[6], ip[40:]
	if next == 0 && len(rest) > 8 { // hop-by-hop options, before multicast reports
		next, rest = rest[0], rest[(int(rest[1])+1)*8:]
	}
	return next == unix.IPPROTO_ICMPV6 && len(rest) > 0 && (rest[0] >= 133 && rest[0] <= 137 || rest[0] == 131 || rest[0] == 143)
}

func (t *Traffic) addUDP(udp []byte, port uint16, segment int) bool {
	if len(udp) < 12 || binary.BigEndian.Uint16(udp) != port && binary.BigEndian.Uint16(udp[2:]) != port {
		return false
	}
	n := 1
	if payload := len(udp) - 8; segment > 0 && payload > segment {
		n = (payload + segment - 1) / segment
	}
	switch kind := udp[8]; {
	case kind == 4 && udp[9]|udp[10]|udp[11] == 0:
		t.WireGuardData += n
	case kind >= 1 && kind <= 3 && udp[9]|udp[10]|udp[11] == 0:
		t.WireGuardOther += n
	default:
		return false
	}
	return true
}
