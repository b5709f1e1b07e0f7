package overlay

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/conn"

	"tapestry.dev/tapestry/netstack/packet"
)

// A path probe is an ICMP echo request inside the tunnel, between two stack addresses, padded to the size in question.
// A Tapestry peer's Mesh answers with a short reply, so that only the way there is measured. A stock peer's kernel
// answers as it answers any ping, with a reply of the same size, so that the way back is measured too.
const (
	echoMagic  = "tapestry"
	echoHeader = 8
	// echoPayload is the length of the magic, the asking Mesh's cookie and the path MTU in question. A probe has a byte
	// more, which older Meshes do not send; see echo.moved.
	echoPayload = len(echoMagic) + 8 + 2
	// echoFlagged is the least size of an IP packet of either family that has the byte of flags.
	echoFlagged = 40 + echoHeader + echoPayload + 1
)

// ICMP types (RFC 792, RFC 4443).
const (
	echoReply4, echoRequest4 = 0, 8
	echoRequest6, echoReply6 = 128, 129
)

// echo is a probe or the answer to one.
type echo struct {
	src, dst packet.Addr
	size     int // of the IP packet in bytes
	path     uint16
	id, seq  uint16 // id is the token of the candidate that was asked, 0 for the present address
	cookie   [8]byte
	reply    bool
	moved    bool // the asking Mesh has begun to send to another address
	back     bool // the answer is to go to an address of the asking node, of the family of IPv6 if back6 is set, else IPv4
	back6    bool
	passes   bool // of a beat: the asked Mesh is passed over
	// to, if not nil, is where the packet goes instead of the peer's present address. It does not travel.
	to conn.Endpoint
}

func newCookie() (c [8]byte) {
	rand.Read(c[:]) // never fails (crypto/rand)
	return c
}

// put writes the packet to dst and returns its length in bytes.
func (e *echo) put(dst []byte) int {
	head, typ := 40, byte(echoRequest6)
	if e.src.Is4() {
		head, typ = 20, echoRequest4
	}
	if e.reply {
		typ = echoReply6
		if e.src.Is4() {
			typ = echoReply4
		}
	}
	n := max(e.size, head+echoHeader+echoPayload)
	ip := dst[:n]
	clear(ip)
	be := binary.BigEndian
	icmp := ip[head:]
	icmp[0] = typ
	be.PutUint16(icmp[4:], e.id)
	be.PutUint16(icmp[6:], e.seq)
	body := icmp[echoHeader:]
	copy(body, echoMagic)
	copy(body[8:], e.cookie[:])
	be.PutUint16(body[16:], e.path)
	if len(body) > echoPayload {
		body[echoPayload] = e.flags()
	}
	var seed uint32
	if head == 20 {
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, byte(packet.ICMPv4) // DF
		be.PutUint16(ip[2:], uint16(n))
		copy(ip[12:], e.src[12:])
		copy(ip[16:], e.dst[12:])
		be.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	} else {
		ip[0], ip[6], ip[7] = 0x60, byte(packet.ICMPv6), 64
		be.PutUint16(ip[4:], uint16(n-40))
		copy(ip[8:], e.src[:])
		copy(ip[24:], e.dst[:])
		seed = uint32(packet.Checksum(ip[8:40], uint32(packet.ICMPv6)+uint32(n-40)))
	}
	be.PutUint16(icmp[2:], ^packet.Checksum(icmp, seed))
	return n
}

// Bits of the byte of flags.
const (
	flagMoved = 1 << iota
	flagBack
	flagBack6
	flagPasses
)

func (e *echo) flags() (b byte) {
	for _, f := range [...]struct {
		set bool
		bit byte
	}{{e.moved, flagMoved}, {e.back, flagBack}, {e.back6, flagBack6}, {e.passes, flagPasses}} {
		if f.set {
			b |= f.bit
		}
	}
	return b
}

func (e *echo) setFlags(b byte) {
	e.moved, e.back, e.back6, e.passes = b&flagMoved != 0, b&flagBack != 0, b&flagBack6 != 0, b&flagPasses != 0
}

// parse reads ip into e. It reports false when ip is neither a probe nor an answer to one.
func (e *echo) parse(ip []byte) bool {
	head := 0
	switch {
	case len(ip) >= 20+echoHeader+echoPayload && ip[0] == 0x45 && ip[9] == byte(packet.ICMPv4):
		head = 20
		e.reply = ip[head] == echoReply4
		if !e.reply && ip[head] != echoRequest4 {
			return false
		}
		e.dst = packet.AddrFrom(netip.AddrFrom4([4]byte(ip[16:20])))
	case len(ip) >= 40+echoHeader+echoPayload && ip[0]>>4 == 6 && ip[6] == byte(packet.ICMPv6):
		head = 40
		e.reply = ip[head] == echoReply6
		if !e.reply && ip[head] != echoRequest6 {
			return false
		}
		e.dst = packet.Addr(ip[24:40])
	default:
		return false
	}
	icmp := ip[head:]
	body := icmp[echoHeader:]
	if string(body[:8]) != echoMagic {
		return false
	}
	e.src, _ = source(ip)
	e.id, e.seq = binary.BigEndian.Uint16(icmp[4:]), binary.BigEndian.Uint16(icmp[6:])
	e.cookie = [8]byte(body[8:16])
	e.path = binary.BigEndian.Uint16(body[16:])
	if len(body) > echoPayload {
		e.setFlags(body[echoPayload])
	}
	e.size = len(ip)
	return true
}

// takeEcho reports whether ip is a probe to this node, which it then answers, or an answer to a probe, which it then
// notes. The caller must not deliver such a packet.
func (m *Mesh) takeEcho(from *peer, ip []byte) bool {
	var e echo
	if !e.parse(ip) || !slices.Contains(m.stackAddrs, e.dst) {
		return false
	}
	if e.reply {
		switch {
		case e.cookie != m.cookie:
		case e.path == 0:
			m.beaten(from)
		default:
			m.answered(answer{from, int(e.path), e.id})
		}
		return true
	}
	if e.isBeat() {
		m.asked(from, &e)
	}
	if m.refuses(&e) {
		return true
	}
	if e.moved {
		from.moved.Store(true)
	}
	if e.back {
		e.to = m.wayBack(from, e.back6)
	}
	e.reply, e.size = true, 0
	e.src, e.dst = e.dst, e.src
	m.ring.control(e)
	return true
}
