// Package dgram opens and handles the host's datagram sockets for the relays. The sockets are not connected, so one
// serves all destinations. They pass on what the IP headers of datagrams say (Head). Each has an error queue that says
// which destination an error is about, and who sent the error.
//
// System calls on them are raw, since they do not block. They may run the receiver's softirq work, which takes tens of
// microseconds, and the Go runtime, were it told, would take them for blocked calls.
package dgram

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Kind is the protocol that a socket carries.
type Kind uint8

// The kinds.
const (
	UDP  Kind = iota
	Echo      // ICMP echoes, which the kernel allows the groups in net.ipv4.ping_group_range
)

// Open opens a non-blocking socket with a port, or an ICMP identifier, of its own. It is bound to the unspecified
// address: the kernel chooses the source address by the route to each destination. The socket reports the Head of each
// datagram that arrives.
func Open(kind Kind, is4 bool) (fd int, err error) {
	type option struct{ level, name int }
	family, everywhere, proto := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{}), [...]int{unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6}[kind]
	needed := []option{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}, {unix.IPPROTO_IPV6, unix.IPV6_RECVERR},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT}, {unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS}}
	if is4 {
		family, everywhere, proto = unix.AF_INET, &unix.SockaddrInet4{}, [...]int{unix.IPPROTO_UDP, unix.IPPROTO_ICMP}[kind]
		needed = []option{{unix.IPPROTO_IP, unix.IP_RECVERR}, {unix.IPPROTO_IP, unix.IP_RECVTTL}, {unix.IPPROTO_IP, unix.IP_RECVTOS}}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, o := range needed {
		if err = unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			_ = unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if err = unix.Bind(fd, everywhere); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// setDF makes a socket set Don't Fragment and refuse datagrams that do not fit, or, if on is false, follow the host's
// default.
func setDF(fd int, is4, on bool) {
	mode := unix.IP_PMTUDISC_WANT
	if on {
		mode = unix.IP_PMTUDISC_DO
	}
	level, opt := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	if is4 {
		level, opt = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	}
	_ = unix.SetsockoptInt(fd, level, opt, mode)
}

// PathMTU returns the path MTU to a destination as far as the host knows it, and 0 otherwise. It opens a socket and
// connects it, because only a connected socket can be asked.
func PathMTU(to packet.Addr) int {
	family, level, opt := unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU
	if to.Is4() {
		family, level, opt = unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	a := AddrOf(packet.Endpoint{Addr: to, Port: 9})
	if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(a.len)); errno != 0 {
		return 0
	}
	n, err := unix.GetsockoptInt(fd, level, opt)
	if err != nil {
		return 0
	}
	return n
}

// Addr is an address and port in the kernel's form.
type Addr struct {
	raw unix.RawSockaddrInet6 // with family AF_INET its beginning is a RawSockaddrInet4
	len uint32
}

// AddrOf returns e in the kernel's form.
func AddrOf(e packet.Endpoint) (a Addr) {
	if e.Addr.Is4() {
		a.len = unix.SizeofSockaddrInet4
		a.v4().Family, a.v4().Addr = unix.AF_INET, [4]byte(e.Addr[12:])
	} else {
		a.len = unix.SizeofSockaddrInet6
		a.raw.Family, a.raw.Addr = unix.AF_INET6, e.Addr
	}
	binary.BigEndian.PutUint16(a.port(), e.Port)
	return a
}

func (a *Addr) v4() *unix.RawSockaddrInet4 { return (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw)) }

// port returns the port in network byte order. It stands in the same place in both families.
func (a *Addr) port() []byte { return (*[2]byte)(unsafe.Pointer(&a.raw.Port))[:] }

// AddrFrom is AddrOf for an address that may have an IPv6 zone.
func AddrFrom(ap netip.AddrPort) Addr {
	a := AddrOf(packet.EndpointFrom(ap))
	if zone := ap.Addr().Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			a.raw.Scope_id = uint32(n)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			a.raw.Scope_id = uint32(i.Index)
		}
	}
	return a
}

// AddrPort returns the address and port that the kernel wrote, and the zone of a link-local address as the number of
// its interface. It is invalid if it is not an IP address.
func (a *Addr) AddrPort() netip.AddrPort {
	e, ok := a.Endpoint()
	if !ok {
		return netip.AddrPort{}
	}
	ip := e.Addr.Netip()
	if a.raw.Family == unix.AF_INET6 && a.raw.Scope_id != 0 {
		ip = ip.WithZone(strconv.FormatUint(uint64(a.raw.Scope_id), 10))
	}
	return netip.AddrPortFrom(ip, e.Port)
}

// To sets the address as the destination of a message.
func (a *Addr) To(m *unix.Msghdr) { m.Name, m.Namelen = (*byte)(unsafe.Pointer(&a.raw)), a.len }

// From makes the kernel write the sender of a received message to the address.
func (a *Addr) From(m *unix.Msghdr) {
	m.Name, m.Namelen = (*byte)(unsafe.Pointer(&a.raw)), uint32(unsafe.Sizeof(a.raw))
}

// Endpoint returns the address and port that the kernel wrote. ok is false if it is not an IP address.
func (a *Addr) Endpoint() (e packet.Endpoint, ok bool) {
	e.Port = binary.BigEndian.Uint16(a.port())
	switch a.raw.Family {
	case unix.AF_INET:
		e.Addr[10], e.Addr[11] = 0xff, 0xff
		copy(e.Addr[12:], a.v4().Addr[:])
		return e, true
	case unix.AF_INET6:
		e.Addr = a.raw.Addr
		return e, true
	}
	return e, false
}
