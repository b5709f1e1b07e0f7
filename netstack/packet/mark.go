package packet

// serviceMark is a bit of the TCP header that is reserved: senders set it to zero, and receivers ignore it (RFC 9293
// 3.1). Nodes set it inside the tunnel, and only there.
const serviceMark = 0x04

// MarkService marks a TCP segment as one that its node has translated for a Service. It updates the checksum. The
// packet must be no fragment.
func (p *Packet) MarkService() {
	if b := p.IP[p.L4:]; b[12]&serviceMark == 0 {
		p.putMark(b, b[12]|serviceMark)
	}
}

// TakeServiceMark removes the mark of a TCP segment, and reports whether there was one. The packet must be no fragment.
func (p *Packet) TakeServiceMark() bool {
	b := p.IP[p.L4:]
	if b[12]&serviceMark == 0 {
		return false
	}
	p.putMark(b, b[12]&^serviceMark)
	return true
}

func (p *Packet) putMark(b []byte, to byte) {
	was := be.Uint16(b[12:])
	b[12] = to
	p.updateL4(b[16:], 0, portDelta(was, be.Uint16(b[12:])))
}
