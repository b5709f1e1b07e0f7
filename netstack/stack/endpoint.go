package stack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gvisor "gvisor.dev/gvisor/pkg/tcpip/stack"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// linkEndpoint joins the stack to the pipeline. It lets the stack send superframes (HostGSO) and skip the verification
// of checksums, which were verified before. It does not declare TX checksum offload, because packets without GSOOptions
// would then leave without a checksum.
type linkEndpoint struct {
	send       func([]byte) []byte
	mtu        atomic.Uint32
	dispatcher atomic.Pointer[gvisor.NetworkDispatcher]
	buffers    sync.Pool // *[packet.MaxFrame]byte; the stack's windows bound how many are in use
}

var (
	_ gvisor.LinkEndpoint = (*linkEndpoint)(nil)
	_ gvisor.GSOEndpoint  = (*linkEndpoint)(nil)
)

// gsoMaxSize is the largest size of headers and payload of a superframe that the stack makes. With an Ethernet header
// it is still below 64 KiB.
const gsoMaxSize = 65000

func newLinkEndpoint(send func([]byte) []byte, mtu int) *linkEndpoint {
	e := &linkEndpoint{send: send}
	e.mtu.Store(uint32(mtu))
	e.buffers.New = func() any { return new([packet.MaxFrame]byte) }
	return e
}

func (e *linkEndpoint) MTU() uint32                             { return e.mtu.Load() }
func (e *linkEndpoint) SetMTU(mtu uint32)                       { e.mtu.Store(mtu) }
func (e *linkEndpoint) MaxHeaderLength() uint16                 { return packet.HeadLen }
func (e *linkEndpoint) LinkAddress() tcpip.LinkAddress          { return "" }
func (e *linkEndpoint) SetLinkAddress(tcpip.LinkAddress)        {}
func (e *linkEndpoint) Wait()                                   {}
func (e *linkEndpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (e *linkEndpoint) AddHeader(*gvisor.PacketBuffer)          {}
func (e *linkEndpoint) ParseHeader(*gvisor.PacketBuffer) bool   { return true }
func (e *linkEndpoint) Close()                                  {}
func (e *linkEndpoint) SetOnCloseAction(func())                 {}
func (e *linkEndpoint) IsAttached() bool                        { return e.dispatcher.Load() != nil }
func (e *linkEndpoint) GSOMaxSize() uint32                      { return gsoMaxSize }
func (e *linkEndpoint) SupportedGSO() gvisor.SupportedGSO       { return gvisor.HostGSOSupported }

func (e *linkEndpoint) Capabilities() gvisor.LinkEndpointCapabilities {
	return gvisor.CapabilityRXChecksumOffload
}

func (e *linkEndpoint) Attach(d gvisor.NetworkDispatcher) {
	if d == nil {
		e.dispatcher.Store(nil)
		return
	}
	e.dispatcher.Store(&d)
}

// WritePackets sends the stack's packets through the pipeline, in the stack's goroutine.
func (e *linkEndpoint) WritePackets(list gvisor.PacketBufferList) (int, tcpip.Error) {
	buf := e.buffers.Get().(*[packet.MaxFrame]byte)
	n := 0
	for _, pkt := range list.AsSlice() {
		size := packet.HeadLen
		for _, part := range pkt.AsSlices() {
			size += copy(buf[size:], part)
		}
		buf = e.carry(buf, size, vnetOf(pkt))
		n++
	}
	e.buffers.Put(buf)
	return n, nil
}

// carry completes the headers of the superframe in buf[:size] and sends it. It returns the buffer that it gets in
// exchange.
func (e *linkEndpoint) carry(buf *[packet.MaxFrame]byte, size int, vnet packet.VNetHdr) *[packet.MaxFrame]byte {
	vnet.Encode(buf[:])
	ether := packet.EtherIPv4
	if buf[packet.HeadLen]>>4 == 6 {
		ether = packet.EtherIPv6
	}
	binary.BigEndian.PutUint16(buf[packet.HeadLen-2:], ether)
	return (*[packet.MaxFrame]byte)(e.send(buf[:size]))
}

// vnetOf returns the virtio-net header for the work that the stack left undone in pkt.
func vnetOf(pkt *gvisor.PacketBuffer) packet.VNetHdr {
	var h packet.VNetHdr
	o := &pkt.GSOOptions
	if o.Type == gvisor.GSONone || !o.NeedsCsum {
		return h
	}
	h.Flags = packet.NeedsCsum
	h.HdrLen = uint16(packet.EthLen + pkt.HeaderSize())
	h.CsumStart = packet.EthLen + o.L3HdrLen
	h.CsumOffset = o.CsumOffset
	if pkt.Data().Size() > int(o.MSS) {
		h.GSOSize = o.MSS
		h.GSOType = packet.GSOTCPv4
		if o.Type == gvisor.GSOTCPv6 {
			h.GSOType = packet.GSOTCPv6
		}
	}
	return h
}

// Deliver passes a packet to the relay or to the stack. p is a fragment, or its checksum was verified. Deliver does not
// keep p, but turn may take over its buffer. TCP with the outside, and UDP of clients of host sockets, goes to a relay.
// The rest is copied to the stack, after reassembly, and after segmentation of UDP superframes, because the stack has
// no UDP offload. later is for packets that answer a packet of the stack, whose sender may still hold locks: they are
// delivered in another goroutine. The caller ends the turn when it has no more frames at hand.
func (s *Stack) Deliver(p *packet.Packet, turn *Turn, later bool) {
	if later {
		view := flatten(p)
		s.spawn(func() {
			var q packet.Packet
			var turn Turn
			defer turn.End()
			if q.ParseIP(view.AsSlice()) != packet.Good || !s.relayed(&q, &turn) {
				s.receive(view)
				return
			}
			view.Release()
		})
		return
	}
	if p.Frag != packet.NoFrag {
		s.gather(p, func(whole *packet.Packet) {
			if !s.clients.Deliver(whole) {
				s.receive(flatten(whole))
			}
		})
		return
	}
	if s.relayed(p, turn) || s.keeping.hold(s, p) || s.shuns.Load() && begins(p) {
		return
	}
	cut := &turn.cut
	if p.VNet.GSOType&^packet.GSOECN != packet.GSOUDPL4 {
		s.receive(flatten(p))
		return
	}
	cut.Reset(p, nil)
	for {
		view := buffer.NewViewSize(cut.Size())
		n := cut.Next(view.AsSlice())
		if n == 0 {
			view.Release()
			return
		}
		view.CapLength(n)
		s.receive(view)
	}
}

// Shun has SYNs to the stack dropped from now on. Their senders send them again, so that the stack of the next process
// gets them. Connections of the relays, and those that are there, go on.
func (s *Stack) Shun() { s.shuns.Store(true) }

// begins reports whether p begins a TCP connection.
func begins(p *packet.Packet) bool {
	return p.Tuple.Proto == packet.TCP && p.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN
}

// Turn is scratch memory of a goroutine that delivers packets, and collects what it does once for many packets. The
// zero value is ready.
type Turn struct {
	cut  packet.Segmenter
	tcp  tcprelay.Turn
	flat []byte // for a superframe in pieces; nil until there was one
}

// join copies a superframe in pieces into one.
func (t *Turn) join(p *packet.Packet) {
	if t.flat == nil {
		t.flat = make([]byte, packet.MaxFrame)
	}
	n := copy(t.flat, p.IP)
	for _, b := range p.Tail {
		n += copy(t.flat[n:], b)
	}
	p.IP, p.Tail, p.Buf = t.flat[:n], nil, nil
}

// End does the work that waited for the end of the turn.
func (t *Turn) End() { t.tcp.End() }

// relayed passes a packet to the relay that handles it, and reports whether one did. They handle unfragmented TCP of
// this node's pods that is not with the stack itself, TCP of clients with pods of other nodes, and what belongs to
// clients of the host's UDP sockets.
func (s *Stack) relayed(p *packet.Packet, turn *Turn) bool {
	switch {
	case p.Frag != packet.NoFrag || p.Tuple.Space != 0:
		return false
	case p.Tuple.Proto == packet.ICMPv4 || p.Tuple.Proto == packet.ICMPv6:
		return s.unreachable(p) || s.clients.Deliver(p)
	case p.Tuple.Proto != packet.TCP:
		return s.clients.Deliver(p)
	}
	if len(p.Tail) > 0 { // it comes from another node
		if !s.relay.Resuming() && !s.relay.Carries(&p.Tuple) {
			return false
		}
		turn.join(p)
	}
	return s.relay.Deliver(p, &turn.tcp, !s.owns(p.Tuple.Dst))
}

// unreachable tells the relay that an ICMP error says of one of its connections that there is no way to the pod. It
// reports whether the error is about one of those.
func (s *Stack) unreachable(p *packet.Packet) bool {
	var quoted packet.Packet
	if !p.Embedded(&quoted) || quoted.Tuple.Proto != packet.TCP {
		return false
	}
	t := quoted.Tuple.Reverse()
	if !s.relay.Carries(&t) {
		return false
	}
	const unreachable4, needsFragments, unreachable6 = 3, 4, 1
	if p.Tuple.Proto == packet.ICMPv4 && p.ICMPType == unreachable4 && p.ICMPCode != needsFragments || p.Tuple.Proto == packet.ICMPv6 && p.ICMPType == unreachable6 {
		s.relay.Unreachable(&t)
	}
	return true
}

func flatten(p *packet.Packet) *buffer.View {
	view := buffer.NewViewSize(p.Len())
	n := copy(view.AsSlice(), p.IP)
	for _, t := range p.Tail {
		n += copy(view.AsSlice()[n:], t)
	}
	return view
}

// receive takes ownership of view.
func (s *Stack) receive(view *buffer.View) {
	d := s.link.dispatcher.Load()
	if d == nil {
		view.Release()
		return
	}
	proto := header.IPv4ProtocolNumber
	if view.AsSlice()[0]>>4 == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := gvisor.NewPacketBuffer(gvisor.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	(*d).DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
	s.poller.Yield() // whoever waits for it is ready now
}
