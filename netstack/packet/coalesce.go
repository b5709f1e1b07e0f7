package packet

// maxTail is how many packets may follow the first of a superframe. Together they are the 64 UDP segments that kernels
// before 6.9 accept (UDP_MAX_SEGMENTS), and more than 64 KiB need at any usual MTU.
const maxTail = 63

// Coalescer joins the packets of one batch from the tunnel into superframes, without copying. It is the inverse of
// Segmenter. Call Reset, Add for each packet in the order of arrival, then Next until it returns nil. The packets of
// one flow stay in order; those of different flows may change their order. The zero value is ready. After the first
// batches nothing is allocated.
type Coalescer struct {
	// UDP allows UDP superframes (GSOUDPL4), for receivers that accept them: TAPs with USO.
	UDP bool
	// Partial makes Add recognise partial checksums that a Segmenter with Partial wrote, for peers that may send them.
	// Such packets are joined and returned with a partial checksum. Partial may change at Reset.
	Partial bool

	packets []Packet
	runs    []run
	next    int
	heads   [256]int32 // by hash: 1 + index of the newest packet of the chain, 0 for none
}

// run holds what the next packet that joins packets[i] must match.
type run struct {
	hash    uint64
	older   int32 // 1 + index of the next older packet of the chain
	size    int   // payload in bytes of every packet but the last
	total   int   // length in bytes of the IP packet with all tails
	seq     uint32
	id      uint16
	open    bool // more may follow
	checked bool // the first packet's checksum was found right
	flags   uint8
}

// Reset forgets the last batch, whose bytes were borrowed until now.
func (c *Coalescer) Reset() {
	c.packets, c.runs, c.next = c.packets[:0], c.runs[:0], 0
	c.closeAll()
}

// closeAll ends all runs: later packets do not join those before.
func (c *Coalescer) closeAll() { clear(c.heads[:]) }

// Add takes one packet, borrowed until Reset; its header bytes may be changed. A packet with a fault is left out.
func (c *Coalescer) Add(ip []byte) Fault {
	p := c.grow()
	if f := p.ParseIP(ip); f != Good {
		c.packets = c.packets[:len(c.packets)-1]
		return f
	}
	if c.Partial {
		p.detectPartial()
	}
	if p.Frag != NoFrag {
		// A fragment does not name its flow, so it stays after all packets before it and ahead of all that follow.
		c.closeAll()
		c.runs = append(c.runs, run{})
		return Good
	}
	r := run{hash: p.Tuple.Hash(0)}
	head := &c.heads[r.hash&0xff]
	fits := c.eligible(p, &r)
	if i := c.newest(*head, p, r.hash); i >= 0 {
		if fits && c.join(i, p, &r) {
			c.packets = c.packets[:len(c.packets)-1]
			return Good
		}
		c.runs[i].open = false
	}
	r.older = *head
	c.runs = append(c.runs, r)
	*head = int32(len(c.runs))
	return Good
}

// grow returns room for one more packet, with the memory of the Tail that was there before.
func (c *Coalescer) grow() *Packet {
	if n := len(c.packets); n < cap(c.packets) {
		c.packets = c.packets[:n+1]
	} else {
		c.packets = append(c.packets, Packet{})
	}
	return &c.packets[len(c.packets)-1]
}

// newest returns the index of the newest packet of p's flow in the chain, -1 for none.
func (c *Coalescer) newest(head int32, p *Packet, hash uint64) int {
	for i := int(head) - 1; i >= 0; i = int(c.runs[i].older) - 1 {
		if c.runs[i].hash == hash && c.packets[i].Tuple == p.Tuple {
			return i
		}
	}
	return -1
}

// eligible reports whether p may be part of a superframe at all, and makes r the run of p alone.
func (c *Coalescer) eligible(p *Packet, r *run) bool {
	want := 40
	if p.EtherType == EtherIPv4 {
		want = 20
		r.id = be.Uint16(p.IP[4:])
	}
	r.size, r.total = len(p.IP)-p.Payload, len(p.IP)
	if p.L4 != want || r.size == 0 {
		return false // IP options, extension headers, or no payload
	}
	b := p.IP[p.L4:]
	switch p.Tuple.Proto {
	case TCP:
		r.flags = p.TCPFlags & (PSH | FIN)
		r.seq = be.Uint32(b[4:]) + uint32(r.size)
		// PSH and FIN end a superframe, since segmentation gives them to the last segment.
		r.open = p.TCPFlags == ACK && r.size >= minGSOSize
		return p.TCPFlags&^(PSH|FIN) == ACK
	case UDP:
		r.open = c.UDP && int(be.Uint16(b[4:])) == len(b) && be.Uint16(b[6:]) != 0
		return r.open
	}
	return false
}

// join appends q to packet i when segmentation of the result would reproduce both. r is the run of q alone.
func (c *Coalescer) join(i int, q *Packet, r *run) bool {
	p, to := &c.packets[i], &c.runs[i]
	switch {
	case !to.open, r.size > to.size, to.total+r.size > 65535, len(p.Tail) == maxTail:
		return false
	case !sameIP(p, q), !p.DontFragment && r.id != to.id+1:
		return false
	case q.Tuple.Proto == TCP && !sameTCP(p, q, to.seq):
		return false
	case p.isPartial() != q.isPartial():
		return false
	case !q.ChecksumOK():
		return false
	}
	if !to.checked {
		if !p.ChecksumOK() {
			return false
		}
		to.checked = true
	}
	p.Tail = append(p.Tail, q.IP[q.Payload:])
	to.total += r.size
	to.seq, to.id = r.seq, r.id
	to.flags |= r.flags
	to.open = r.size == to.size && r.flags == 0
	return true
}

// sameIP compares the fields of the IP header that segmentation repeats: class, flow label, TTL, DF.
func sameIP(p, q *Packet) bool {
	a, b := p.IP, q.IP
	if p.EtherType == EtherIPv6 {
		return be.Uint32(a) == be.Uint32(b) && a[7] == b[7]
	}
	return a[1] == b[1] && a[6] == b[6] && a[8] == b[8]
}

// sameTCP compares the fields of the TCP header that segmentation repeats: acknowledgement, window, urgent pointer,
// options. It also checks that q continues at seq.
func sameTCP(p, q *Packet, seq uint32) bool {
	a, b := p.IP[p.L4:p.Payload], q.IP[q.L4:q.Payload]
	return be.Uint32(b[4:]) == seq && len(a) == len(b) && a[12] == b[12] &&
		string(a[8:12]) == string(b[8:12]) && string(a[14:16]) == string(b[14:16]) && string(a[18:]) == string(b[18:])
}

// Pending returns the packets that Next has not returned yet, so that a caller can prefetch for them. The slice is
// borrowed until Add or Reset.
func (c *Coalescer) Pending() []Packet { return c.packets[c.next:] }

// Next returns the next packet or superframe, nil when there is none left. It is borrowed until Reset.
func (c *Coalescer) Next() *Packet {
	if c.next == len(c.packets) {
		return nil
	}
	p := &c.packets[c.next]
	if len(p.Tail) > 0 {
		p.finish(&c.runs[c.next])
	}
	c.next++
	return p
}

// finish gives p the headers of a superframe with a partial checksum.
func (p *Packet) finish(r *run) {
	ip, b := p.IP, p.IP[p.L4:]
	n := r.total - p.L4
	if p.EtherType == EtherIPv4 {
		be.PutUint16(ip[2:], uint16(r.total))
		setHeaderChecksum(ip[:p.L4])
	} else {
		be.PutUint16(ip[4:], uint16(n))
	}
	p.offloadChecksum()
	p.VNet.GSOType, p.VNet.GSOSize = GSOUDPL4, uint16(r.size)
	if p.Tuple.Proto == TCP {
		b[13] |= r.flags
		p.TCPFlags = b[13]
		p.VNet.GSOType = GSOTCPv4
		if p.EtherType == EtherIPv6 {
			p.VNet.GSOType = GSOTCPv6
		}
	} else {
		be.PutUint16(b[4:], uint16(n))
	}
	putPartial(ip, p.L4, p.Tuple.Proto, n)
}
