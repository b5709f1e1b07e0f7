package superframe

import (
	"encoding/binary"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
)

var be = binary.BigEndian

const (
	udpLen = 8
	ttl    = 64
	// maxSegments is the number of datagrams in one superframe that every kernel with USO accepts (UDP_MAX_SEGMENTS
	// before Linux 6.9).
	maxSegments = 64
	// maxIP is the largest size of a superframe for a pod, in bytes.
	maxIP = packet.MaxFrame - packet.HeadLen
	// maxHead is the length of the longest headers.
	maxHead = 40 + udpLen
)

// Header holds the headers of all packets from one address and port to another, without lengths and checksums.
type Header struct {
	bytes [maxHead]byte
	ip    int // length of the IP header, 20 or 40
}

// HeaderOf makes the headers of packets of t.
func HeaderOf(t *packet.Tuple) (h Header) {
	if h.ip = 40; t.Src.Is4() {
		h.ip = 20
	}
	putIP(h.bytes[:], &t.Src, &t.Dst)
	udp := h.bytes[h.ip:]
	be.PutUint16(udp, t.SrcPort)
	be.PutUint16(udp[2:], t.DstPort)
	return h
}

// putIP writes an IP header without lengths and checksum.
func putIP(ip []byte, src, dst *packet.Addr) {
	if src.Is4() {
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, ttl, byte(packet.UDP) // DF: no identification is needed (RFC 6864 4.1)
		copy(ip[12:], src[12:])
		copy(ip[16:], dst[12:])
		return
	}
	ip[0], ip[6], ip[7] = 6<<4, byte(packet.UDP), ttl
	copy(ip[8:], src[:])
	copy(ip[24:], dst[:])
}

func (h *Header) is4() bool { return h.ip == 20 }

// Len is the length of the headers.
func (h *Header) Len() int { return h.ip + udpLen }

// HeadLen is the length of the headers of a family.
func HeadLen(is4 bool) int {
	if is4 {
		return 20 + udpLen
	}
	return 40 + udpLen
}

// put writes the headers of ip, which holds its data already: datagrams of size bytes each, where the last may be
// shorter. came is what their own IP headers said. The UDP checksum is partial, as the returned virtio-net header says.
func (h *Header) put(ip []byte, size int, came dgram.Head) packet.VNetHdr {
	copy(ip, h.bytes[:h.Len()])
	came.Put(ip)
	h.lengths(ip)
	be.PutUint16(ip[h.ip+6:], h.pseudo(ip))
	v := packet.VNetHdr{
		Flags: packet.NeedsCsum, HdrLen: uint16(packet.EthLen + h.Len()), CsumStart: uint16(packet.EthLen + h.ip), CsumOffset: 6,
	}
	if len(ip)-h.Len() > size {
		v.GSOType, v.GSOSize = packet.GSOUDPL4, uint16(size)
	}
	return v
}

// lengths completes the headers of the packet ip, except for the UDP checksum.
func (h *Header) lengths(ip []byte) {
	if h.is4() {
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[10:], 0)
		be.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	} else {
		be.PutUint16(ip[4:], uint16(len(ip)-40))
	}
	be.PutUint16(ip[h.ip+4:], uint16(len(ip)-h.ip))
}

// pseudo returns the folded sum of the pseudo header of the packet ip (RFC 768, RFC 8200 8.1).
func (h *Header) pseudo(ip []byte) uint16 {
	s := uint32(packet.UDP) + uint32(len(ip)-h.ip)
	if h.is4() {
		return packet.Checksum(ip[12:20], s)
	}
	return packet.Checksum(ip[8:40], s)
}

// Quote returns a datagram without data that goes the other way, as ICMP errors quote it.
func (h *Header) Quote() []byte {
	b, answer := make([]byte, h.Len()), &h.bytes
	copy(b, answer[:])
	if h.is4() {
		copy(b[12:], answer[16:20])
		copy(b[16:], answer[12:16])
	} else {
		copy(b[8:], answer[24:40])
		copy(b[24:], answer[8:24])
	}
	copy(b[h.ip:], answer[h.ip+2:h.ip+4])
	copy(b[h.ip+2:], answer[h.ip:h.ip+2])
	h.lengths(b)
	return b
}

// cut says how a datagram is cut into fragments.
type cut struct {
	mtu  int
	id   uint32
	came dgram.Head // what the datagram's own IP header said
}

// fragments cuts a datagram into IP fragments and passes each to emit, which may change it. scratch has room for the
// packet and one fragment.
func (h *Header) fragments(data []byte, c cut, scratch []byte, emit func(ip []byte)) {
	ip := scratch[:h.Len()+len(data)]
	copy(ip, h.bytes[:h.Len()])
	c.came.Put(ip)
	copy(ip[h.Len():], data)
	h.lengths(ip)
	sum := ^packet.Checksum(ip[h.ip:], uint32(h.pseudo(ip)))
	if sum == 0 {
		sum = 0xffff // 0 means no checksum (RFC 768)
	}
	be.PutUint16(ip[h.ip+6:], sum)
	packet.PutFragments(ip, c.mtu, c.id, scratch[len(ip):], emit)
}
