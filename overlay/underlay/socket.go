package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// bufferSize is the requested size in bytes of each of the socket's buffers: about 20 ms at 3 Gb/s, the time that a
// busy machine may leave the reader without a core.
const bufferSize = 8 << 20

// OpenSocket opens the UDP socket of a Mesh, bound to port on all addresses (0: any port), for IPv6 and IPv4 where
// the host has both, else for IPv4. The socket does not fragment, and receives coalesced datagrams.
func OpenSocket(port uint16) (*os.File, error) {
	fd, err := openDual(port)
	if err != nil && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		fd, err = open4(port)
	}
	if err != nil {
		return nil, fmt.Errorf("open WireGuard's UDP port %d: %w", port, err)
	}
	tune(fd)
	return os.NewFile(uintptr(fd), fmt.Sprintf("udp:%d", port)), nil
}

const socketType = unix.SOCK_DGRAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK

func openDual(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, socketType, unix.IPPROTO_UDP)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func open4(port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, socketType, unix.IPPROTO_UDP)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// tune sets the options that the data path prefers. It ignores all errors: a refused option costs speed, early
// knowledge of the path MTU, or the address that answers leave from, and nothing else. Old kernels lack some options,
// an unprivileged agent may not use *FORCE, and a socket of one family refuses the other's options.
//
// With *_PROBE nothing is fragmented, as with *_DO, and the kernel holds back only what does not fit the interface, and
// not what does not fit the path MTU that a router told it of. It remembers that for ten minutes, and the Mesh finds
// out much sooner that the path is better again.
func tune(fd int) {
	for _, o := range [...]struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize},
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferSize},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
		{unix.IPPROTO_UDP, unix.UDP_GRO, 1},
	} {
		_ = unix.SetsockoptInt(fd, o.level, o.name, o.value)
	}
	// With this option a socket for both families reports the addresses of IPv4 datagrams, too.
	if unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) != nil {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
}

// PathMTU returns the path MTU towards dst in bytes, as the kernel knows it: the MTU of the interface, or less when a
// router said so by ICMP in the last minutes. It reports false when the kernel does not tell.
func PathMTU(dst netip.AddrPort) (int, bool) {
	a := dst.Addr().Unmap()
	family, level, opt := unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(dst.Port()), Addr: a.As16()}
	if a.Is4() {
		family, level, opt = unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU
		sa = &unix.SockaddrInet4{Port: int(dst.Port()), Addr: a.As4()}
	}
	// Only a connected socket has a route to read the MTU from, and the Mesh's own is not connected.
	fd, err := unix.Socket(family, socketType, unix.IPPROTO_UDP)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); err != nil {
		return 0, false
	}
	mtu, err := unix.GetsockoptInt(fd, level, opt)
	return mtu, err == nil && mtu > 0
}
