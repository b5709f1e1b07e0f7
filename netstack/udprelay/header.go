package udprelay

import (
	"encoding/binary"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
)

var be = binary.BigEndian

const (
	udpLen = 8
	ttl    = 64
	// maxSegments is how many datagrams every kernel with USO takes in one superframe (UDP_MAX_SEGMENTS before Linux 6.9).
	maxSegments = 64
	// maxIP bounds a superframe for a pod.
	maxIP = packet.MaxFrame - packet.HeadLen
	// maxHead is the length of the longest header.
	maxHead = 40 + udpLen
)

// header is what stands before the data of every packet for the pod, but for lengths and checksums.
type header struct {
	bytes [maxHead]byte
	ip    int // length of the IP header, 20 or 40
}

// newHeader makes the header of what answers t.
func newHeader(t *packet.Tuple) (h header) {
	if h.ip = 40; t.Src.Is4() {
		h.ip = 20
	}
	putIP(h.bytes[:], &t.Dst, &t.Src)
	udp := h.bytes[h.ip:]
	be.PutUint16(udp, t.DstPort)
	be.PutUint16(udp[2:], t.SrcPort)
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

func (h *header) is4() bool { return h.ip == 20 }

func (h *header) len() int { return h.ip + udpLen }

// headLen is the length of the headers of a family.
func headLen(is4 bool) int {
	if is4 {
		return 20 + udpLen
	}
	return 40 + udpLen
}

// put writes the headers of ip, which has its data: datagrams of size bytes each but for the last, whose own IP headers
// said what came says. The checksum is left to whoever takes the packet with the virtio-net header that is returned.
func (h *header) put(ip []byte, size int, came dgram.Head) packet.VNetHdr {
	copy(ip, h.bytes[:h.len()])
	came.Put(ip)
	h.lengths(ip)
	be.PutUint16(ip[h.ip+6:], h.pseudo(ip))
	v := packet.VNetHdr{
		Flags: packet.NeedsCsum, HdrLen: uint16(packet.EthLen + h.len()), CsumStart: uint16(packet.EthLen + h.ip), CsumOffset: 6,
	}
	if len(ip)-h.len() > size {
		v.GSOType, v.GSOSize = packet.GSOUDPL4, uint16(size)
	}
	return v
}

// lengths completes the headers of the packet ip, but for the UDP checksum.
func (h *header) lengths(ip []byte) {
	if h.is4() {
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[10:], 0)
		be.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	} else {
		be.PutUint16(ip[4:], uint16(len(ip)-40))
	}
	be.PutUint16(ip[h.ip+4:], uint16(len(ip)-h.ip))
}

// pseudo is the folded sum of the pseudo header of the packet ip (RFC 768, RFC 8200 8.1).
func (h *header) pseudo(ip []byte) uint16 {
	s := uint32(packet.UDP) + uint32(len(ip)-h.ip)
	if h.is4() {
		return packet.Checksum(ip[12:20], s)
	}
	return packet.Checksum(ip[8:40], s)
}

// quote is a datagram without data as the pod sends them.
func (h *header) quote() []byte {
	b, answer := make([]byte, h.len()), &h.bytes
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

// cut is how a datagram that does not fit is cut.
type cut struct {
	mtu  int
	id   uint32
	came dgram.Head // what its own IP header said
}

// fragments cuts a datagram into IP fragments and hands each to emit, which may change it. scratch holds the packet and
// a fragment.
func (h *header) fragments(data []byte, c cut, scratch []byte, emit func(ip []byte)) {
	ip := scratch[:h.len()+len(data)]
	copy(ip, h.bytes[:h.len()])
	c.came.Put(ip)
	copy(ip[h.len():], data)
	h.lengths(ip)
	sum := ^packet.Checksum(ip[h.ip:], uint32(h.pseudo(ip)))
	if sum == 0 {
		sum = 0xffff // 0 is "none" (RFC 768)
	}
	be.PutUint16(ip[h.ip+6:], sum)
	packet.PutFragments(ip, c.mtu, c.id, scratch[len(ip):], emit)
}
