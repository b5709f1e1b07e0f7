package packet

import (
	"bytes"
	"encoding/hex"
	"hash/crc32"
	"testing"
)

// chunk is an SCTP chunk, padded.
func chunk(kind, flags uint8, value ...byte) []byte {
	b := append([]byte{kind, flags, 0, byte(chunkHeadLen + len(value))}, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// sctp is an SCTP packet from podA to podB with a verification tag.
func sctp(src, dst string, tag uint32, chunks ...[]byte) []byte {
	ip := spec{src: src, dst: dst, proto: SCTP, sport: 4000, dport: 9, payload: bytes.Join(chunks, nil)}.ip()
	l4 := 20
	if ip[0]>>4 == 6 {
		l4 = 40
	}
	be.PutUint32(ip[l4+4:], tag)
	slowL4Checksum(ip, l4, SCTP)
	return ip
}

// slowCRC is SCTP's checksum bit by bit, by the polynomial of RFC 9260 appendix A, and of no table.
func slowCRC(b []byte) uint32 {
	crc := ^uint32(0)
	for _, octet := range b {
		for bit := range 8 {
			in := uint32(octet)>>bit&1 ^ crc&1
			crc = crc>>1 ^ in*0x82f63b78
		}
	}
	return ^crc
}

// TestCRC32cVectors: the checksum is that of RFC 3720 B.4, whose vectors are for the CRC of SCTP.
func TestCRC32cVectors(t *testing.T) {
	up, down := make([]byte, 32), make([]byte, 32)
	for i := range up {
		up[i], down[i] = byte(i), byte(31-i)
	}
	read, _ := hex.DecodeString("01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000")
	for name, c := range map[string]struct {
		data []byte
		want uint32 // as the bytes stand in a packet
	}{
		"zeroes":            {make([]byte, 32), 0xaa36918a},
		"ones":              {bytes.Repeat([]byte{0xff}, 32), 0x43aba862},
		"incrementing":      {up, 0x4e79dd46},
		"decrementing":      {down, 0x5cdb3f11},
		"iSCSI read (10)":   {read, 0x563a96d9},
		"the digits 1 to 9": {[]byte("123456789"), 0x839206e3},
	} {
		got := make([]byte, 4)
		le.PutUint32(got, crc32.Checksum(c.data, castagnoli))
		if be.Uint32(got) != c.want || slowCRC(c.data) != le.Uint32(got) {
			t.Errorf("%s: got %x, bit by bit %x, want %x", name, be.Uint32(got), slowCRC(c.data), c.want)
		}
	}
}

// TestSCTPRewriteAgainstBits: after translation the checksum is what the bits say, at every length, also when it was
// wrong before.
func TestSCTPRewriteAgainstBits(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for n := range 200 {
			ip := sctp(a, b, 7, chunk(0, 3, pattern(n)...))
			p := mustParseIP(t, ip)
			to := p.Tuple
			to.SrcPort, to.DstPort = 33000, 5060
			p.Rewrite(&to)
			l4 := bytes.Clone(p.IP[p.L4:])
			have := le.Uint32(l4[8:])
			clear(l4[8:12])
			if want := slowCRC(l4); have != want || !p.ChecksumOK() {
				t.Fatalf("%d bytes: checksum %x, want %x", n, have, want)
			}
			// One that was wrong stays wrong: the receiver has to notice.
			p.IP[p.L4+14] ^= 0x10
			to.DstPort = 5061
			p.Rewrite(&to)
			if p.ChecksumOK() {
				t.Fatalf("%d bytes: damage was covered up", n)
			}
		}
	})
}

func TestSCTPFlags(t *testing.T) {
	init := chunk(chunkInit, 0, pattern(16)...)
	for name, c := range map[string]struct {
		chunks [][]byte
		want   uint8
	}{
		"INIT":                   {[][]byte{init}, SYN},
		"INIT ACK":               {[][]byte{chunk(chunkInitAck, 0, pattern(16)...)}, SYN | ACK},
		"COOKIE ECHO":            {[][]byte{chunk(10, 0, 1, 2, 3)}, ACK},
		"DATA":                   {[][]byte{chunk(0, 3, pattern(17)...)}, ACK},
		"ABORT":                  {[][]byte{chunk(chunkAbort, 0)}, RST},
		"SACK, ABORT":            {[][]byte{chunk(3, 0, pattern(12)...), chunk(chunkAbort, 0)}, RST | ACK},
		"ABORT, SHUTDOWN":        {[][]byte{chunk(chunkAbort, 0), chunk(chunkShutdown, 0)}, RST},
		"SHUTDOWN":               {[][]byte{chunk(chunkShutdown, 0, 1, 2, 3, 4)}, FIN | ACK},
		"SACK, SHUTDOWN":         {[][]byte{chunk(3, 0, pattern(13)...), chunk(chunkShutdown, 0, 1, 2, 3, 4)}, FIN | ACK},
		"SHUTDOWN ACK":           {[][]byte{chunk(chunkShutdownAck, 0)}, FIN | ACK},
		"SHUTDOWN COMPLETE":      {[][]byte{chunk(chunkShutdownComplete, 0)}, FIN | ACK},
		"DATA, INIT":             {[][]byte{chunk(0, 3, 1, 2, 3, 4), init}, ACK},
		"no chunk":               {nil, 0},
		"half of a head":         {[][]byte{{1, 0}}, 0},
		"of no length, SHUTDOWN": {[][]byte{{0, 0, 0, 0}, chunk(chunkShutdown, 0)}, ACK},
		"an ABORT after too many": {append(func() (l [][]byte) {
			for range maxChunks {
				l = append(l, chunk(0, 3))
			}
			return l
		}(), chunk(chunkAbort, 0)), ACK},
	} {
		if got := mustParseIP(t, sctp(podA4, podB4, 7, c.chunks...)).TCPFlags; got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
}

// TestPutAbort follows RFC 9260 8.4.
func TestPutAbort(t *testing.T) {
	families(t, func(t *testing.T, a, b string) {
		for name, c := range map[string]struct {
			tag    uint32
			chunks [][]byte
			want   string // tag and flags of the ABORT; "" for none
		}{
			"INIT":              {0, [][]byte{chunk(chunkInit, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1)}, "deadbeef 00"},
			"INIT, cut off":     {0, [][]byte{{1, 0, 0, 20, 0xde, 0xad}}, ""},
			"DATA":              {0x01020304, [][]byte{chunk(0, 3, pattern(20)...)}, "01020304 01"},
			"COOKIE ECHO":       {0x01020304, [][]byte{chunk(10, 0, 5)}, "01020304 01"},
			"SHUTDOWN ACK":      {0x01020304, [][]byte{chunk(chunkShutdownAck, 0)}, "01020304 01"},
			"SHUTDOWN COMPLETE": {0x01020304, [][]byte{chunk(chunkShutdownComplete, 0)}, ""},
			"COOKIE ACK":        {0x01020304, [][]byte{chunk(chunkCookieAck, 0)}, ""},
			"ABORT":             {0x01020304, [][]byte{chunk(chunkAbort, 0)}, ""},
			"DATA, ABORT":       {0x01020304, [][]byte{chunk(0, 3, 1), chunk(chunkAbort, 0)}, ""},
			"no chunk":          {0x01020304, nil, ""},
		} {
			dst := make([]byte, 60)
			p := mustParseIP(t, sctp(a, b, c.tag, c.chunks...))
			n := PutAbort(dst, p)
			if n == 0 || c.want == "" {
				if n != 0 || c.want != "" {
					t.Errorf("%s: %d bytes, want %q", name, n, c.want)
				}
				continue
			}
			checkSums(t, dst[:n])
			got := mustParseIP(t, dst[:n])
			back := p.Tuple.Reverse()
			l4 := got.IP[got.L4:]
			if text := hex.EncodeToString(l4[4:8]) + " " + hex.EncodeToString(l4[13:14]); got.Tuple != back || text != c.want ||
				got.TCPFlags != RST || len(l4) != 16 || be.Uint16(l4[14:]) != 4 {
				t.Errorf("%s: %v %s % x, want %v %s", name, got.Tuple, text, l4, back, c.want)
			}
		}
	})
	if n := PutAbort(make([]byte, 60), mustParseIP(t, spec{src: podA4, dst: podB4, proto: TCP}.ip())); n != 0 {
		t.Error("TCP was answered with an ABORT")
	}
}
