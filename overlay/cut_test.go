package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay/narrow"
	"tapestry.dev/tapestry/test/await"
)

// joinAll puts together what was cut. Other packets stay as they are, and so does the order. It removes outer headers.
func joinAll(t testing.TB, got [][]byte) (whole [][]byte) {
	t.Helper()
	var data []byte
	var p packet.Packet
	for _, ip := range got {
		if inner, _, ok := packet.Decap(ip); ok {
			ip = inner
		}
		if !packet.IsCut(ip) {
			whole = append(whole, ip)
			continue
		}
		if f := p.ParseIP(ip); f != packet.Good {
			t.Fatalf("a piece with fault %d", f)
		}
		piece := p.Piece()
		if piece.At != len(data) {
			t.Fatalf("a piece at %d after %d bytes", piece.At, len(data))
		}
		if data = append(data, piece.Data...); piece.More {
			continue
		}
		ip = append(bytes.Clone(ip[:40]), data...)
		ip[6] = byte(p.Tuple.Proto)
		binary.BigEndian.PutUint16(ip[4:], uint16(len(data)))
		whole, data = append(whole, ip), nil
	}
	if len(data) > 0 {
		t.Fatalf("%d bytes of a packet without an end", len(data))
	}
	return whole
}

// IPv6 packets of up to 1,280 bytes get through whatever the path carries (RFC 8200 5), encapsulated ones as well.
func TestIPv6OverNarrowPath(t *testing.T) {
	client := packet.Encap{Src: packet.AddrFrom(stackAddrs(1)[0]), Dst: packet.AddrFrom(stackAddrs(2)[0])}
	client6 := packet.Encap{Src: packet.AddrFrom(stackAddrs(1)[1]), Dst: packet.AddrFrom(stackAddrs(2)[1])}
	for _, underlay := range []int{576, 1000, 1300, 1339, 1340, 1500} {
		a, b := pair(t, func(o *Options) { o.UnderlayMTU = underlay })
		partial := b.as(b.loopback())
		partial.TakesPartial = true
		for _, c := range []struct {
			name   string
			proto  packet.Proto
			n, mss int
			via    *packet.Encap
			peer   Peer
		}{
			{"one packet", packet.UDP, addressing.MinMTU - 48, 9000, nil, b.as(b.loopback())},
			{"a small packet", packet.UDP, 300, 9000, nil, b.as(b.loopback())},
			{"a superframe", packet.TCP, 64000, addressing.MinMTU - 60, nil, b.as(b.loopback())},
			{"a superframe of partial checksums", packet.TCP, 64000, addressing.MinMTU - 60, nil, partial},
			{"a UDP superframe", packet.UDP, 30001, 1000, nil, partial},
			{"of a client", packet.TCP, 20000, addressing.MinMTU - 60, &client, partial},
			{"of a client, IPv6 alone", packet.TCP, 20000, addressing.MinMTU - 60, &client6, partial},
		} {
			t.Run(fmt.Sprintf("%d/%s", underlay, c.name), func(t *testing.T) {
				a.set(c.peer)
				b.forget()
				before := a.Stats()
				p := frame(t, c.proto, pod6(1, 5), pod6(2, 5), c.n, c.mss)
				want := bytes.Clone(p.IP[p.Payload:])
				l4, outer := p.Payload, 0
				if c.via != nil {
					outer = addressing.Encap(!c.via.Src.Is4())
				}
				a.Send(p, 2, c.via)
				await.Until(t, "all bytes", func() bool {
					n := 0
					for _, ip := range b.received(1) {
						if in, _, ok := packet.Decap(ip); ok {
							ip = in
						}
						if p := new(packet.Packet); p.ParseIP(ip) == packet.Good {
							n += len(ip) - p.Payload
						}
					}
					return n >= c.n
				})
				room := innerMTU(underlay, true)
				got := b.received(1)
				for _, ip := range got {
					if len(ip) > room {
						t.Errorf("a packet of %d bytes, of which %d fit", len(ip), room)
					}
				}
				whole := joinAll(t, got)
				for _, ip := range whole {
					if a.Stats().SentPartial > before.SentPartial {
						complete(t, ip)
					}
				}
				if !bytes.Equal(payloads(t, whole), want) {
					t.Error("the payload is not what was sent")
				}
				largest := outer + l4 + min(c.n, c.mss)
				if cut := a.Stats().CutPackets - before.CutPackets; (cut > 0) != (largest > room) || cut > 0 && len(got) < len(whole)+int(cut) {
					t.Errorf("%d packets of up to %d bytes were cut, of which %d fit, %d arrived and are %d", cut, largest, room, len(got), len(whole))
				}
			})
		}
	}
}

// A pod does not choose what the far node joins.
func TestPodsMarkIsCleared(t *testing.T) {
	a, b := pair(t, nil)
	fragment := frame(t, packet.UDP, pod6(1, 5), pod6(2, 5), 900, 9000)
	var c packet.Cutter
	if !c.Reset(bytes.Clone(fragment.IP), 0, 600, 7) {
		t.Fatal("cannot be cut")
	}
	head := bytes.Clone(fragment.Buf[:packet.HeadLen])
	clear(head[:packet.VNetHdrLen]) // fragments have full checksums
	for _, want := range []int{1, 2} {
		buf := append(make([]byte, 0, packet.MaxFrame), head...)
		n := c.Next(buf[packet.HeadLen:packet.MaxFrame])
		if f := fragment.ParseFrame(buf[:packet.HeadLen+n]); f != packet.Good {
			t.Fatalf("fault %d", f)
		}
		if !packet.IsCut(fragment.IP) {
			t.Fatal("the pod's mark is not there")
		}
		a.Send(fragment, 2, nil)
		await.Until(t, "the fragment", func() bool { return len(b.received(1)) == want })
		if packet.IsCut(b.received(1)[want-1]) {
			t.Error("the mark of a pod went through")
		}
	}
}

func TestCuttingAllocatesNothing(t *testing.T) {
	p, cutter, dst := frame(t, packet.TCP, pod6(1, 5), pod6(2, 5), 10000, 1220), narrow.New(), make([]byte, packet.MaxFrame)
	var seg packet.Segmenter
	pieces := 0
	if n := testing.AllocsPerRun(100, func() {
		seg.Reset(p, nil)
		if !cutter.Begin(seg.Size(), 1240, nil) {
			t.Fatal("nothing to cut")
		}
		pieces = 0
		for n, _ := cutter.Next(&seg, dst); n > 0; n, _ = cutter.Next(&seg, dst) {
			pieces++
		}
	}); n != 0 || pieces != 17 { // eight packets in two pieces, and a last small one
		t.Errorf("%v allocations, %d pieces", n, pieces)
	}
}
