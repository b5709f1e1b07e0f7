package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
)

// Types of SCTP chunks (RFC 9260 3.2).
const (
	sctpData       = 0
	sctpInit       = 1
	sctpInitAck    = 2
	sctpCookieEcho = 10
	sctpCookieAck  = 11
)

// The verification tags that the client and the server expect (RFC 9260 8.5).
const clientTag, serverTag = 0x11223344, 0x55667788

// sctpProtocol is the number of SCTP in an IP header.
const sctpProtocol = 132

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sctpPacket is an SCTP packet with one chunk. Kernels need no SCTP for it: it goes through a raw socket.
type sctpPacket struct {
	src, dst uint16
	tag      uint32
	chunk    uint8
	value    []byte // of the chunk, a multiple of four bytes
}

// bytes returns the packet with its checksum, by the standard library's CRC32c.
func (p *sctpPacket) bytes() []byte {
	b := make([]byte, 16, 16+len(p.value))
	binary.BigEndian.PutUint16(b, p.src)
	binary.BigEndian.PutUint16(b[2:], p.dst)
	binary.BigEndian.PutUint32(b[4:], p.tag)
	b[12] = p.chunk
	binary.BigEndian.PutUint16(b[14:], uint16(4+len(p.value)))
	b = append(b, p.value...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parseSCTP returns an error if the checksum is not right by the standard library's CRC32c.
func parseSCTP(b []byte) (p sctpPacket, err error) {
	if len(b) < 16 {
		return p, fmt.Errorf("%d bytes are no SCTP packet", len(b))
	}
	p = sctpPacket{
		src: binary.BigEndian.Uint16(b), dst: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:]),
		chunk: b[12], value: b[16:],
	}
	if again := p.bytes(); binary.LittleEndian.Uint32(b[8:]) != binary.LittleEndian.Uint32(again[8:]) {
		return p, fmt.Errorf("the CRC32c of a packet from port %d to %d is %x, want %x", p.src, p.dst, b[8:12], again[8:12])
	}
	return p, nil
}

// listenSCTP opens a raw socket of a family, "ip4" or "ip6".
func listenSCTP(ctx context.Context, family string) (*net.IPConn, error) {
	conn, err := net.ListenIP(fmt.Sprintf("%s:%d", family, sctpProtocol), nil)
	if err == nil {
		context.AfterFunc(ctx, func() { _ = conn.Close() })
	}
	return conn, err
}

// tagged returns the 16 bytes with which the values of INIT and INIT ACK begin: a tag, a window, streams, a number.
func tagged(tag uint32) []byte {
	b := make([]byte, 16)
	binary.BigEndian.PutUint32(b, tag)
	binary.BigEndian.PutUint32(b[4:], 1<<16)
	b[9], b[11] = 1, 1
	return b
}

// associations answers SCTP packets to a port, until the input ends. A DATA chunk is answered by one that has the
// client's address, as it was seen, as its text. Packets whose checksum is wrong are answered as well, with what is
// wrong.
func associations(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	var port uint16
	if _, err := fmt.Sscan(args[0], &port); err != nil {
		return err
	}
	for _, family := range []string{"ip4", "ip6"} {
		conn, err := listenSCTP(ctx, family)
		if err != nil {
			return err
		}
		go func() {
			for b := make([]byte, 2048); ; {
				n, from, err := conn.ReadFromIP(b)
				if err != nil {
					return
				}
				p, err := parseSCTP(b[:n])
				if p.dst != port {
					continue
				}
				answer := sctpPacket{src: port, dst: p.src, tag: clientTag}
				switch {
				case err != nil:
					answer.value = text(err.Error())
				case p.chunk == sctpInit: // answered with a cookie
					answer.chunk, answer.value = sctpInitAck, append(tagged(serverTag), 0, 7, 0, 8, 1, 2, 3, 4)
				case p.tag != serverTag:
					answer.value = text(fmt.Sprintf("the tag is %x, want %x", p.tag, serverTag))
				case p.chunk == sctpCookieEcho:
					answer.chunk = sctpCookieAck
				case p.chunk == sctpData:
					answer.value = text(from.String())
				default:
					continue
				}
				_, _ = conn.WriteToIP(answer.bytes(), from)
			}
		}()
	}
	started()
	<-ctx.Done()
	return nil
}

// text returns the value of a DATA chunk: a number, a stream, a place in it, a protocol, then the text, filled up.
func text(s string) []byte {
	b := append(make([]byte, 12), s...)
	for len(b)%4 != 0 {
		b = append(b, ' ')
	}
	return b
}

// associated is what came of an association: the client's address as the server saw it.
type associated struct{ Seen string }

// associate has an association with a server at an address and port: the handshake, and one text each way. It sends
// what is not answered again. Every answer has to come from where the client asked, with a right checksum.
func associate(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, await.Patience)
	defer cancel()
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	family := "ip4"
	if to.Addr().Is6() {
		family = "ip6"
	}
	conn, err := listenSCTP(ctx, family)
	if err != nil {
		return err
	}
	const port = 40000
	ask := func(tag uint32, chunk, want uint8, value []byte) (sctpPacket, error) {
		out := sctpPacket{src: port, dst: to.Port(), tag: tag, chunk: chunk, value: value}
		for b := make([]byte, 2048); ; {
			if _, err := conn.WriteToIP(out.bytes(), &net.IPAddr{IP: to.Addr().AsSlice()}); err != nil && ctx.Err() != nil {
				return sctpPacket{}, fmt.Errorf("nobody at %s answers chunk %d: %w", to, chunk, ctx.Err())
			}
			_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			for {
				n, from, err := conn.ReadFromIP(b)
				if err != nil {
					break // it asks again
				}
				p, err := parseSCTP(b[:n])
				switch {
				case p.dst != port:
					continue
				case err != nil:
					return p, err
				case from.String() != to.Addr().String() || p.src != to.Port() || p.tag != clientTag:
					return p, fmt.Errorf("the answer is of %s, port %d, tag %x; want %s and %x", from, p.src, p.tag, to, clientTag)
				case p.chunk == want:
					return p, nil
				case p.chunk == sctpData:
					return p, fmt.Errorf("the server says: %s", p.value[12:])
				}
			}
		}
	}
	if _, err := ask(0, sctpInit, sctpInitAck, tagged(clientTag)); err != nil {
		return err
	}
	if _, err := ask(serverTag, sctpCookieEcho, sctpCookieAck, []byte{1, 2, 3, 4}); err != nil {
		return err
	}
	said, err := ask(serverTag, sctpData, sctpData, text("hello"))
	if err != nil {
		return err
	}
	if len(said.value) < 12 {
		return fmt.Errorf("the server's text has %d bytes", len(said.value))
	}
	return print(associated{string(said.value[12:])})
}

// associates asserts that a client outside has an SCTP association with the server at an address, which sees the
// client.
func (c *cluster) associates(t *testing.T, to string, v6 bool) {
	t.Helper()
	out, text, code, err := c.Output(c.ctx, lab.Outside(), self(t), "e2e-helper", "associate", to)
	if err != nil || code != 0 {
		t.Errorf("SCTP to %s: exit status %d, %v: %s", to, code, err, text)
		return
	}
	if seen := strings.TrimSpace(decode[associated](t, out).Seen); !c.isOutside(t, seen, v6) {
		t.Errorf("SCTP to %s: the pod sees %s, want an address of the client outside", to, seen)
	}
}
