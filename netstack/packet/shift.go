package packet

// Kinds of TCP options, and their lengths in bytes with both octets of the head (RFC 9293 3.1, RFC 7323, RFC 2018).
const (
	tcpEnd, tcpNop                                    = 0, 1
	tcpMSS, tcpScale, tcpSACKOK, tcpSACK, tcpClock    = 2, 3, 4, 5, 8
	tcpMSSLen, tcpScaleLen, tcpSACKOKLen, tcpClockLen = 4, 3, 2, 10
	tcpOptions, tcpSACKHead, tcpSACKEdge              = 20, 2, 4
)

// Shift is how far the numbers of one server are from those of another, modulo 1<<32: what is added to the sequence
// numbers and to the timestamps of a server, for a client that has met another one.
type Shift struct{ Seq, Clock uint32 }

// FromServer adds by to what a segment says of its sender: its sequence number, and the clock of its timestamps. It
// updates the checksum. p must have a TCP header, as every TCP packet but a later fragment has.
func (p *Packet) FromServer(by Shift) {
	b := p.tcpHead()
	was := Checksum(b, 0)
	add32(b[4:], by.Seq)
	p.tcpSeq += by.Seq
	for kind, opt := range options(b) {
		if kind == tcpClock && len(opt) == tcpClockLen {
			add32(opt[2:], by.Clock)
		}
	}
	p.updateL4(b[16:], 0, portDelta(was, Checksum(b, 0)))
}

// ToServer takes by from what a segment says of its receiver: what it acknowledges, in its blocks too (RFC 2018), and
// the clock that it echoes. It updates the checksum. p must have a TCP header.
func (p *Packet) ToServer(by Shift) {
	b := p.tcpHead()
	was := Checksum(b, 0)
	if p.TCPFlags&ACK != 0 { // otherwise neither the field nor an echo means anything (RFC 7323 3.2)
		add32(b[8:], -by.Seq)
		p.tcpAck -= by.Seq
		for kind, opt := range options(b) {
			switch {
			case kind == tcpClock && len(opt) == tcpClockLen:
				add32(opt[6:], -by.Clock)
			case kind == tcpSACK:
				for at := tcpSACKHead; at+tcpSACKEdge <= len(opt); at += tcpSACKEdge {
					add32(opt[at:], -by.Seq)
				}
			}
		}
	}
	p.updateL4(b[16:], 0, portDelta(was, Checksum(b, 0)))
}

// tcpHead returns p's TCP header with its options.
func (p *Packet) tcpHead() []byte {
	b := p.IP[p.L4:]
	return b[:max(tcpOptions, min(int(b[12]>>4)*4, len(b)))]
}

func add32(b []byte, n uint32) { be.PutUint32(b, be.Uint32(b)+n) }

// options yields the options of a TCP header, each whole, until one is malformed. Padding is left out.
func options(head []byte) func(func(kind byte, opt []byte) bool) {
	return func(yield func(byte, []byte) bool) {
		for o := head[tcpOptions:]; len(o) > 0 && o[0] != tcpEnd; {
			if o[0] == tcpNop {
				o = o[1:]
				continue
			}
			if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) || !yield(o[0], o[:o[1]]) {
				return
			}
			o = o[o[1]:]
		}
	}
}

// Terms are what a server offers its client in the segment by which it accepts a connection, and what both then rely
// on.
type Terms struct {
	Seq, Clock  uint32 // where its numbers begin; Clock is 0 without timestamps
	MSS         uint16 // 0 for none said
	Scale       uint8  // of its window, and one more; 0 for no scaling
	SACK, Times bool   // it takes and sends selective acknowledgements, and timestamps
	ECN         bool
	Other       bool // it says something that is not known here
}

// Terms returns what p says, which must have a TCP header.
func (p *Packet) Terms() Terms {
	t := Terms{Seq: p.tcpSeq, ECN: p.TCPFlags&ECE != 0}
	for kind, opt := range options(p.tcpHead()) {
		switch {
		case kind == tcpMSS && len(opt) == tcpMSSLen:
			t.MSS = be.Uint16(opt[2:])
		case kind == tcpScale && len(opt) == tcpScaleLen:
			t.Scale = opt[2] + 1
		case kind == tcpSACKOK && len(opt) == tcpSACKOKLen:
			t.SACK = true
		case kind == tcpClock && len(opt) == tcpClockLen:
			t.Times, t.Clock = true, be.Uint32(opt[2:])
		default:
			t.Other = true
		}
	}
	return t
}

// Shift returns how far the numbers of t are from those of a server with the terms u. It returns false when a client to
// which t was said cannot be served on u instead.
func (t Terms) Shift(u Terms) (by Shift, ok bool) {
	by = Shift{Seq: t.Seq - u.Seq, Clock: t.Clock - u.Clock}
	return by, !t.Other && !u.Other && t.Scale == u.Scale && t.SACK == u.SACK && t.Times == u.Times && t.ECN == u.ECN && t.MSS <= u.MSS
}
