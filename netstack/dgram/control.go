package dgram

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Control is memory for the control messages that the kernel adds to a datagram or an error.
type Control struct {
	raw [20]uint64 // aligned as control messages are
}

// For makes the kernel write the control messages of m to c.
func (c *Control) For(m *unix.Msghdr) {
	m.Control = (*byte)(unsafe.Pointer(&c.raw))
	m.SetControllen(int(unsafe.Sizeof(c.raw)))
}

// next returns level, type and data of the first control message in b, and the messages after it. If there is none,
// data is nil.
func next(b []byte) (level, kind int32, data, rest []byte) {
	if len(b) < unix.SizeofCmsghdr {
		return 0, 0, nil, nil
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
	n := int(h.Len)
	if n < unix.SizeofCmsghdr || n > len(b) {
		return 0, 0, nil, nil
	}
	return h.Level, h.Type, b[unix.CmsgLen(0):n:n], b[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(b)):]
}

// written returns what the kernel has written to c for m.
func (c *Control) written(m *unix.Msghdr) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&c.raw)), min(uintptr(m.Controllen), unsafe.Sizeof(c.raw)))
}

// Read reads the control messages of m. It returns what the IP header of the message says. If the kernel has coalesced
// several datagrams (UDP_GRO), size is the length of each, where the last may be shorter; otherwise size is 0.
func (c *Control) Read(m *unix.Msghdr) (h Head, size int) {
	for level, kind, data, rest := next(c.written(m)); data != nil; level, kind, data, rest = next(rest) {
		if level == unix.IPPROTO_IP && kind == unix.IP_TOS && len(data) > 0 {
			h.Class = data[0] // the only value that is not an int
			continue
		}
		if len(data) < 4 {
			continue
		}
		n := binary.NativeEndian.Uint32(data)
		switch {
		case level == unix.SOL_UDP && kind == unix.UDP_GRO:
			size = int(n)
		case level == unix.IPPROTO_IP && kind == unix.IP_TTL, level == unix.IPPROTO_IPV6 && kind == unix.IPV6_HOPLIMIT:
			h.TTL = uint8(n)
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_TCLASS:
			h.Class = uint8(n)
		}
	}
	return h, size
}

// Local returns the local address from which the message m is answered (ip(7), RFC 3542 6.2), if the socket was asked
// to tell. This is the address to which the message was sent. For a broadcast address it is an address of the same
// interface; for an IPv6 multicast address it is the zero address, so that the kernel chooses.
func (c *Control) Local(m *unix.Msghdr) packet.Addr {
	for level, kind, data, rest := next(c.written(m)); data != nil; level, kind, data, rest = next(rest) {
		switch {
		case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return packet.AddrFrom(netip.AddrFrom4([4]byte(data[4:8]))) // ipi_spec_dst
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			if a := packet.Addr(data[:16]); a[0] != 0xff { // ipi6_addr
				return a
			}
		}
	}
	return packet.Addr{}
}
