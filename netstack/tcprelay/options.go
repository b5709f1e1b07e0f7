package tcprelay

import "encoding/binary"

// offer is what the options of a SYN say about its sender.
type offer struct {
	mss    int
	scale  uint8
	scales bool // the option is present; otherwise neither side scales (RFC 7323 2.2)
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
		}
		o = o[o[1]:]
	}
	return got
}

// putOffer writes the options of our SYN to b and returns them.
func putOffer(b []byte, mss int, scales bool) []byte {
	b = binary.BigEndian.AppendUint16(append(b[:0], 2, 4), uint16(mss))
	if scales {
		b = append(b, 1, 3, 3, ourScale)
	}
	return b
}
