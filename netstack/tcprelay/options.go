package tcprelay

import "encoding/binary"

// offer is what the options of a SYN say about its sender.
type offer struct {
	mss    int
	scale  uint8
	scales bool // the option is present; otherwise neither side scales (RFC 7323 2.2)
	sacks  bool // the sender takes selective acknowledgements (RFC 2018 2)
}

const (
	// ourScale makes the window field count units of 256 bytes.
	ourScale = 8
	// maxScale is the largest scale (RFC 7323 2.3).
	maxScale = 14
	// defaultMSS4 and defaultMSS6 apply to a sender that does not announce its MSS (RFC 9293 3.7.1).
	defaultMSS4, defaultMSS6 = 536, 1220
	// minMSS is TCP_MIN_SND_MSS of Linux, less 40 bytes of options.
	minMSS = 8

	optSACKPermitted, optSACK = 4, 5
	// maxBlocks is how many ranges a selective acknowledgement of ours tells.
	maxBlocks = 3
)

// readOffer reads a SYN's options. It stops at a malformed one.
func readOffer(o []byte, is4 bool) offer {
	got := offer{mss: defaultMSS6}
	if is4 {
		got.mss = defaultMSS4
	}
	for len(o) > 0 {
		switch o[0] {
		case 0: // end
			return got
		case 1: // padding
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
			return got
		}
		switch v := o[2:o[1]]; {
		case o[0] == 2 && len(v) == 2:
			got.mss = max(int(binary.BigEndian.Uint16(v)), minMSS)
		case o[0] == 3 && len(v) == 1:
			got.scale, got.scales = min(v[0], maxScale), true
		case o[0] == optSACKPermitted && len(v) == 0:
			got.sacks = true
		}
		o = o[o[1]:]
	}
	return got
}

// putOffer writes the options of our SYN to b and returns them.
func putOffer(b []byte, mss int, scales, sacks bool) []byte {
	b = binary.BigEndian.AppendUint16(append(b[:0], 2, 4), uint16(mss))
	if scales {
		b = append(b, 1, 3, 3, ourScale)
	}
	if sacks {
		b = append(b, 1, 1, optSACKPermitted, 2)
	}
	return b
}

// eachSACK calls f for each range in the selective acknowledgements among a segment's options (RFC 2018 3). It stops at
// a malformed one.
func eachSACK(o []byte, f func(at, end uint32)) {
	for len(o) > 0 {
		if o[0] <= 1 {
			if o[0] == 0 {
				return
			}
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
			return
		}
		if o[0] == optSACK {
			for v := o[2:o[1]]; len(v) >= 8; v = v[8:] {
				f(be.Uint32(v), be.Uint32(v[4:]))
			}
		}
		o = o[o[1]:]
	}
}

// putSACK writes a selective acknowledgement of what came after a hole to b and returns it. The range with the number
// latest comes first (RFC 2018 4).
func putSACK(b []byte, came []early, latest uint32) []byte {
	var blocks [maxBlocks][2]uint32
	n, has := 0, false
	for i := 0; i < len(came); {
		at, end := came[i].seq, came[i].end()
		for i++; i < len(came) && !ahead(came[i].seq, end); i++ {
			end = later(end, came[i].end())
		}
		switch is := latest-at < end-at; {
		case is:
			copy(blocks[1:], blocks[:n])
			blocks[0], has = [2]uint32{at, end}, true
			n = min(n+1, maxBlocks)
		case n < maxBlocks-1 || n < maxBlocks && has:
			blocks[n] = [2]uint32{at, end}
			n++
		}
	}
	b = append(b[:0], 1, 1, optSACK, byte(2+8*n))
	for _, k := range blocks[:n] {
		b = be.AppendUint32(be.AppendUint32(b, k[0]), k[1])
	}
	return b
}
