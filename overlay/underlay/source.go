package underlay

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// source is the control message that has datagrams leave from an address of ours (ip(7), RFC 3542 6.1), for a socket of
// each family. Whoever wrote to an address of a host with several expects its answer from there, and so do firewalls on
// the way. An address may go: from then on the kernel chooses.
type source struct {
	addr   netip.Addr // invalid: the kernel chooses
	v4, v6 [sourceLen]byte
	gone   atomic.Bool
}

// sourceLen holds either control message.
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

// control is the message for a socket; nil when the kernel chooses. It is only read.
func (s *source) control(is6 bool) []byte {
	switch {
	case !s.addr.IsValid() || s.gone.Load():
		return nil
	case is6:
		return s.v6[:unix.CmsgSpace(unix.SizeofInet6Pktinfo)]
	}
	return s.v4[:unix.CmsgSpace(unix.SizeofInet4Pktinfo)]
}

// isOfSource tells errors that may be about the source address: that it is no longer ours, or has no way there.
func isOfSource(errno unix.Errno) bool { return errno == unix.EINVAL || errno == unix.ENETUNREACH }

// arrived reads the control messages of a received message: the size of each datagram but the last where the kernel
// coalesced several (UDP_GRO), else 0; and which address of ours answers, invalid for none: the one it was sent to, or,
// where that is no unicast address, none.
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
