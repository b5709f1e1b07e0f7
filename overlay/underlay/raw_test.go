package underlay

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

func bytesAt(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// putGRO writes the control message with which the kernel tells the segment size, and returns its length.
func putGRO(ctl []byte, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_GRO
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(ctl[unix.CmsgLen(0):], uint32(size))
	return unix.CmsgSpace(4)
}
