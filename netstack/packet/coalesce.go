package packet

// maxTail is how many packets may follow the first of a superframe: with the head they are the 64 segments that kernels
// before 6.9 take of UDP (UDP_MAX_SEGMENTS), and more than 64 KiB need at any usual MTU.
const maxTail = 63

// Coalescer joins the packets of one batch that came out of the tunnel into superframes, without copying: the inverse
// of Segmenter. Use: Reset, Add for each packet in the order of arrival, Next until it gives nil. The packets of one
// flow stay in order; flows may pass one another. The zero value is ready; after the first batches nothing is
// allocated.
type Coalescer struct {
	// UDP allows UDP superframes (GSOUDPL4), for receivers that take them: TAPs with USO.
	UDP bool
	// Partial recognises partial checksums as a Segmenter with Partial writes them, for peers that may send such. What has
	// one is joined, and given, with a partial checksum. It may change at Reset.
	Partial bool

	packets []Packet
	runs    []run
	next    int
	heads   [256]int32 // by hash: 1 + index of the newest packet of that chain, 0 for none
}

// run is what the next packet of packets[i] must match.
type run struct {
	hash    uint64
	older   int32 // 1 + index of the next older packet of the chain
	size    int   // payload of every packet but the last
	total   int   // IP packet with all tails
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

// closeAll ends all runs: nothing may be joined across this point.
func (c *Coalescer) closeAll() { clear(c.heads[:]) }

// Add takes one packet, borrowed until Reset; its header bytes may be changed. A faulty one is not taken.
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
		// A fragment does not name its flow, so it stays behind all that came before it and ahead of all to come.
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

// grow gives room for one more packet, with the Tail of the one that was there before.
func (c *Coalescer) grow() *Packet {
	if n := len(c.packets); n < cap(c.packets) {
		c.packets = c.packets[:n+1]
	} else {
		c.packets = append(c.packets, Packet{})
	}
	return &c.packets[len(c.packets)-1]
}

// newest finds the newest packet of p's flow, -1 for none.
func (c *Coalescer) newest(head int32, p *Packet, hash uint64) int {
	for i := int(head) - 1; i >= 0; i = int(c.runs[i].older) - 1 {
		if c.runs[i].hash == hash && c.packets[i].Tuple == p.Tuple {
			return i
		}
	}
	return -1
}

// eligible reports whether p may be part of a superframe at all, and makes r that of p alone.
func (c *Coalescer) eligible(p *Packet, r *run) bool {
	want := 40
	if p.EtherType == EtherIPv4 {
		want = 20
		r.id = be.Uint16(p.IP[4:])
	}
	r.size, r.total = len(p.IP)-p.Payload, len(p.IP)
	if p.L4 != want || r.size == 0 {
		return false // IP options and extension headers
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

// join appends q, whose own run would be r, to packet i when a segmentation of the result would give both back.
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

// sameIP compares what segmentation repeats of the IP header: class, flow label, TTL, DF.
func sameIP(p, q *Packet) bool {
	a, b := p.IP, q.IP
	if p.EtherType == EtherIPv6 {
		return be.Uint32(a) == be.Uint32(b) && a[7] == b[7]
	}
	return a[1] == b[1] && a[6] == b[6] && a[8] == b[8]
}

// sameTCP compares what segmentation repeats of the TCP header: acknowledgement, window, urgent pointer, options.
func sameTCP(p, q *Packet, seq uint32) bool {
	a, b := p.IP[p.L4:p.Payload], q.IP[q.L4:q.Payload]
	return be.Uint32(b[4:]) == seq && len(a) == len(b) && a[12] == b[12] &&
		string(a[8:12]) == string(b[8:12]) && string(a[14:16]) == string(b[14:16]) && string(a[18:]) == string(b[18:])
}

// Pending is what Next has yet to give, for looking at it in advance. It is borrowed until Add or Reset.
func (c *Coalescer) Pending() []Packet { return c.packets[c.next:] }

// Next gives the next packet or superframe, nil when all were given. It is borrowed until Reset.
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

// finish makes the headers of p those of a superframe with a partial checksum.
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
