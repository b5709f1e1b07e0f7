package link

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"

	"tapestry.dev/tapestry/netstack/packet"
)

// Numbers of the protocols.
const (
	headerLen  = 14 // Ethernet
	arpLen     = 28 // of an ARP packet over Ethernet (RFC 826)
	leastLen   = 60 // of a frame, without its checksum (IEEE 802.3)
	ip6Len     = 40
	icmp6      = 58
	optionMark = 253 // an NDP option for experiments (RFC 4727)
)

// The mark by which our announcements are known: the magic, and a number of the node.
const (
	magic   = "tapestry"
	markLen = 14 // what an NDP option of 16 bytes has room for
)

var (
	zeroMAC  = net.HardwareAddr{0, 0, 0, 0, 0, 0}
	allNodes = netip.MustParseAddr("ff02::1")
)

func mark(node string) []byte { return []byte(magic + number(node)) }

// number returns how a node is called in marks.
func number(node string) string {
	h := fnv.New64a()
	h.Write([]byte(node))
	return string(h.Sum(nil)[:markLen-len(magic)])
}

// by returns the number of the node whose mark begins b; "" when none does.
func by(b []byte) string {
	if len(b) < markLen || !bytes.HasPrefix(b, []byte(magic)) {
		return ""
	}
	return string(b[len(magic):markLen])
}

// speech makes the frames of one interface.
type speech struct {
	mac  net.HardwareAddr
	mark []byte
}

// frame puts an Ethernet header before a payload, and what is missing of the least length after it.
func (s *speech) frame(to net.HardwareAddr, kind ethernet.EtherType, payload, fill []byte) []byte {
	f := make([]byte, 0, leastLen+len(payload))
	f = append(append(f, to...), s.mac...)
	f = binary.BigEndian.AppendUint16(f, uint16(kind))
	f = append(append(f, payload...), fill...)
	for len(f) < leastLen {
		f = append(f, 0)
	}
	return f
}

func (s *speech) arp(op arp.Operation, from netip.Addr, target net.HardwareAddr, targetIP netip.Addr, to net.HardwareAddr) ([]byte, error) {
	p, err := arp.NewPacket(op, s.mac, from, target, targetIP)
	if err != nil {
		return nil, err
	}
	body, err := p.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return s.frame(to, ethernet.EtherTypeARP, body, s.mark), nil
}

// ndp makes a frame with an NDP message, whose hop limit proves that it comes from the link (RFC 4861, section 11.2).
func (s *speech) ndp(m ndp.Message, from, to netip.Addr, mac net.HardwareAddr) ([]byte, error) {
	body, err := ndp.MarshalMessageChecksum(m, from, to)
	if err != nil {
		return nil, err
	}
	ip := make([]byte, ip6Len, ip6Len+len(body))
	ip[0], ip[6], ip[7] = 0x60, icmp6, 255
	binary.BigEndian.PutUint16(ip[4:], uint16(len(body)))
	copy(ip[8:], from.AsSlice())
	copy(ip[24:], to.AsSlice())
	return s.frame(mac, ethernet.EtherTypeIPv6, append(ip, body...), nil), nil
}

// announcement returns the frames that tell everybody where an address is.
func (s *speech) announcement(a netip.Addr) ([][]byte, error) {
	if a.Is4() {
		request, err := s.arp(arp.OperationRequest, a, zeroMAC, a, ethernet.Broadcast)
		if err != nil {
			return nil, err
		}
		reply, err := s.arp(arp.OperationReply, a, ethernet.Broadcast, a, ethernet.Broadcast)
		return [][]byte{request, reply}, err
	}
	f, err := s.ndp(s.advertisement(a, false), a, allNodes, multicastMAC(allNodes))
	return [][]byte{f}, err
}

func (s *speech) advertisement(a netip.Addr, solicited bool) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{
		Solicited: solicited, Override: true, TargetAddress: a,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: s.mac},
			s.markOption(),
		},
	}
}

// markOption returns the mark as an NDP option. Its length counts in units of 8 bytes, its type and length included.
func (s *speech) markOption() ndp.Option {
	return &ndp.RawOption{Type: optionMark, Length: 2, Value: s.mark}
}

// markIn returns the number of the node whose mark is among options; "" when none is.
func markIn(options []ndp.Option) string {
	for _, o := range options {
		if raw, is := o.(*ndp.RawOption); is && raw.Type == optionMark {
			return by(raw.Value)
		}
	}
	return ""
}

// probe returns the frame that asks whether anybody has an address, without saying that this node does.
func (s *speech) probe(a netip.Addr) ([]byte, error) {
	if a.Is4() {
		return s.arp(arp.OperationRequest, netip.IPv4Unspecified(), zeroMAC, a, ethernet.Broadcast)
	}
	group := solicitedNode(a)
	return s.ndp(&ndp.NeighborSolicitation{TargetAddress: a, Options: []ndp.Option{s.markOption()}}, netip.IPv6Unspecified(), group, multicastMAC(group))
}

// heard is what a frame says.
type heard struct {
	addr netip.Addr
	from net.HardwareAddr
	// asks is set for a question; asker is who asks, unspecified for a probe.
	asks  bool
	asker netip.Addr
	// by is the number of the node whose announcer sent it, "" for anybody else's.
	by string
}

// parseARP reads an ARP frame.
func (s *speech) parseARP(f []byte) (h heard, ok bool) {
	if len(f) < headerLen+arpLen {
		return h, false
	}
	var p arp.Packet
	if err := p.UnmarshalBinary(f[headerLen : headerLen+arpLen]); err != nil || !p.SenderIP.Is4() || len(p.SenderHardwareAddr) != 6 {
		return h, false
	}
	fill := f[headerLen+arpLen:]
	h = heard{addr: p.SenderIP, from: p.SenderHardwareAddr, by: by(fill)}
	if p.Operation == arp.OperationRequest && p.SenderIP != p.TargetIP {
		h.addr, h.asks, h.asker = p.TargetIP, true, p.SenderIP
	}
	return h, true
}

// parseNDP reads an IPv6 frame. Only solicitations and advertisements that are valid (RFC 4861, section 7.1) are heard.
func (s *speech) parseNDP(f []byte) (h heard, ok bool) {
	if len(f) < headerLen+ip6Len || f[headerLen]>>4 != 6 {
		return h, false
	}
	ip := f[headerLen:]
	n := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[6] != icmp6 || ip[7] != 255 || len(ip) < ip6Len+n || n < 24 {
		return h, false
	}
	body := ip[ip6Len : ip6Len+n]
	if packet.Checksum(body, uint32(packet.Checksum(ip[8:40], uint32(icmp6)+uint32(n)))) != 0xffff || body[1] != 0 {
		return h, false
	}
	m, err := ndp.ParseMessage(body)
	if err != nil {
		return h, false
	}
	from := net.HardwareAddr(bytes.Clone(f[6:12]))
	switch m := m.(type) {
	case *ndp.NeighborSolicitation:
		return heard{addr: m.TargetAddress, from: from, asks: true, asker: netip.AddrFrom16([16]byte(ip[8:24])), by: markIn(m.Options)}, true
	case *ndp.NeighborAdvertisement:
		return heard{addr: m.TargetAddress, from: from, by: markIn(m.Options)}, true
	}
	return h, false
}

// answer returns the frame that answers a question.
func (s *speech) answer(h *heard) ([]byte, error) {
	if h.addr.Is4() {
		return s.arp(arp.OperationReply, h.addr, h.from, h.asker, h.from)
	}
	if h.asker.IsUnspecified() { // RFC 4861, section 7.2.4
		return s.ndp(s.advertisement(h.addr, false), h.addr, allNodes, multicastMAC(allNodes))
	}
	return s.ndp(s.advertisement(h.addr, true), h.addr, h.asker, h.from)
}

// solicitedNode returns the multicast address at which an address is asked for (RFC 4291, section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	b := a.As16()
	copy(group[13:], b[13:])
	return netip.AddrFrom16(group)
}

// multicastMAC returns the Ethernet address of an IPv6 multicast address (RFC 2464, section 7).
func multicastMAC(a netip.Addr) net.HardwareAddr {
	b := a.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
