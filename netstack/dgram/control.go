package dgram

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control is memory for the control messages with which the kernel hands over a datagram, or an error.
type Control struct {
	raw [20]uint64 // of the alignment that they have
}

// For has the kernel write them there.
func (c *Control) For(m *unix.Msghdr) {
	m.Control = (*byte)(unsafe.Pointer(&c.raw))
	m.SetControllen(int(unsafe.Sizeof(c.raw)))
}

// next takes the first of the control messages in b: what it is, its data, and those behind it. Without one, data is
// nil.
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

// written is what the kernel wrote there for m.
func (c *Control) written(m *unix.Msghdr) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&c.raw)), min(uintptr(m.Controllen), unsafe.Sizeof(c.raw)))
}

// Read reads what came with the message m: what its IP header says, and the size of each datagram but the last where
// the kernel coalesced several (UDP_GRO), else 0.
func (c *Control) Read(m *unix.Msghdr) (h Head, size int) {
	for level, kind, data, rest := next(c.written(m)); data != nil; level, kind, data, rest = next(rest) {
		if level == unix.IPPROTO_IP && kind == unix.IP_TOS && len(data) > 0 {
			h.Class = data[0] // the only one that is no int
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
