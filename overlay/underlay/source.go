package underlay

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// source is the control message that has datagrams leave from one of this host's addresses (ip(7), RFC 3542 6.1), in
// the form for a socket of each family. A peer that wrote to one of several addresses expects the answer from that
// address, and so do firewalls on the way. When the host loses the address, the kernel chooses another one.
type source struct {
	addr   netip.Addr // invalid: the kernel chooses
	v4, v6 [sourceLen]byte
	gone   atomic.Bool
}

// sourceLen is the length in bytes of the longer of the two control messages.
const sourceLen = 40

func (s *source) init(a netip.Addr) {
	if s.addr = a; !a.IsValid() {
		return
	}
	copy(s.v6[:], unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()}))
	if a.Is4() {
		copy(s.v4[:], unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()}))
	}
}

// control returns the message for a socket of the given family; nil when the kernel chooses. The caller must not write
// to it.
func (s *source) control(is6 bool) []byte {
	switch {
	case !s.addr.IsValid() || s.gone.Load():
		return nil
	case is6:
		return s.v6[:unix.CmsgSpace(unix.SizeofInet6Pktinfo)]
	}
	return s.v4[:unix.CmsgSpace(unix.SizeofInet4Pktinfo)]
}

// isOfSource reports whether errno may be about the source address: the host no longer has it, or has no route from it.
func isOfSource(errno unix.Errno) bool { return errno == unix.EINVAL || errno == unix.ENETUNREACH }

// arrived reads the control messages of a received message. size is the length in bytes of each datagram but the last
// where the kernel coalesced several (UDP_GRO), else 0. local is the address of this host that answers should leave
// from: the one that the message was sent to, or invalid when that is not a unicast address.
func arrived(ctl []byte) (size int, local netip.Addr) {
	for len(ctl) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(ctl) {
			break
		}
		data := ctl[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			local = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			local = netip.AddrFrom16([16]byte(data[:16])).Unmap() // ipi6_addr
		}
		ctl = ctl[min(len(ctl), unix.CmsgSpace(n-unix.SizeofCmsghdr)):]
	}
	if local.IsMulticast() || local == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		local = netip.Addr{}
	}
	return size, local
}
