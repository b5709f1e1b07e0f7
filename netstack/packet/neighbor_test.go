package packet

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
)

var ourMAC = MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// arp builds a superframe with an ARP packet.
func arp(op uint16, sha MAC, spa string, tpa string) []byte {
	b := make([]byte, HeadLen+28)
	e := b[VNetHdrLen:]
	copy(e, []byte{255, 255, 255, 255, 255, 255})
	copy(e[6:], macA[:])
	be.PutUint16(e[12:], EtherARP)
	a := e[EthLen:]
	copy(a, []byte{0, 1, 8, 0, 6, 4})
	be.PutUint16(a[6:], op)
	copy(a[8:], sha[:])
	s, d := netip.MustParseAddr(spa).As4(), netip.MustParseAddr(tpa).As4()
	copy(a[14:], s[:])
	copy(a[24:], d[:])
	return b
}

func TestAnswerARP(t *testing.T) {
	b := arp(1, macA, podA4, "169.254.1.1")
	b = append(b, make([]byte, 18)...) // padding
	n := AnswerARP(b, ourMAC)
	want := arp(2, ourMAC, "169.254.1.1", podA4)
	copy(want[VNetHdrLen:], macA[:])
	copy(want[VNetHdrLen+6:], ourMAC[:])
	copy(want[HeadLen+18:], macA[:])
	if n != len(want) || !bytes.Equal(b[:n], want) {
		t.Errorf("got  % x\nwant % x", b[:n], want)
	}

	change := func(at int, v byte) []byte {
		b := arp(1, macA, podA4, podB4)
		b[at] = v
		return b
	}
	silent := map[string][]byte{
		"reply":            arp(2, macA, podA4, podB4),
		"announcement":     arp(1, macA, podA4, podA4),
		"probe":            arp(1, macA, "0.0.0.0", podA4),
		"about nothing":    arp(1, macA, podA4, "0.0.0.0"),
		"truncated":        arp(1, macA, podA4, podB4)[:HeadLen+27],
		"empty":            {},
		"other hardware":   change(HeadLen+1, 6),
		"other protocol":   change(HeadLen+2, 9),
		"address length":   change(HeadLen+4, 8),
		"protocol length":  change(HeadLen+5, 16),
		"other EtherType":  change(VNetHdrLen+13, 0),
		"reverse ARP, op3": change(HeadLen+7, 3),
	}
	for name, b := range silent {
		before := bytes.Clone(b)
		if n := AnswerARP(b, ourMAC); n != 0 || !bytes.Equal(b, before) {
			t.Errorf("%s: answered with %d bytes, or changed", name, n)
		}
	}
}

// solicit builds a neighbour solicitation.
func solicit(src, dst, target string, opts ...byte) []byte {
	a := netip.MustParseAddr(target).As16()
	ip := spec{src: src, dst: dst, proto: ICMPv6, icmp: ndSolicit, payload: slices.Concat(a[:], opts)}.ip()
	ip[7] = 255
	return ip
}

func TestAnswerNS(t *testing.T) {
	node := "ff02::1:ff00:9" // the solicited-node address of podB6
	link := []byte{1, 1, 2, 1, 1, 1, 1, 1}
	nonce := append([]byte{14, 1, 9, 9, 9, 9, 9, 9}, link...)
	for name, ip := range map[string][]byte{
		"multicast":   solicit(podA6, node, podB6, link...),
		"unicast":     solicit(podA6, podB6, podB6, link...),
		"no option":   solicit(podA6, podB6, podB6),
		"two options": solicit(podA6, podB6, podB6, nonce...),
		"link-local":  solicit("fe80::5", "ff02::1:ff00:1", "fe80::1", link...),
	} {
		p := mustParse(t, frame(VNetHdr{}, ip))
		buf := p.Buf[:cap(p.Buf)]
		src, target := p.Tuple.Src, Addr(ip[48:64])
		n := AnswerNS(p, ourMAC)
		if n != HeadLen+72 {
			t.Errorf("%s: %d bytes", name, n)
			continue
		}
		q := mustParse(t, buf[:n])
		checkSums(t, q.IP)
		want := append([]byte{136, 0, q.IP[42], q.IP[43], 0xe0, 0, 0, 0}, target[:]...)
		want = append(append(want, 2, 1), ourMAC[:]...)
		if q.Tuple.Src != target || q.Tuple.Dst != src || q.IP[7] != 255 || q.SrcMAC() != ourMAC || q.DstMAC() != macA || !bytes.Equal(q.IP[40:], want) {
			t.Errorf("%s: % x", name, q.Buf)
		}
	}

	far := solicit(podA6, node, podB6, link...)
	far[7] = 64
	code := solicit(podA6, node, podB6, link...)
	code[41] = 1
	slowL4Checksum(code, 40, ICMPv6)
	sum := solicit(podA6, node, podB6, link...)
	sum[42]++
	for name, ip := range map[string][]byte{
		"probe for duplicates": solicit("::", node, podB6),
		"own address":          solicit(podB6, node, podB6, link...),
		"other node's group":   solicit(podA6, "ff02::1:ff00:8", podB6, link...),
		"all nodes":            solicit(podA6, "ff02::1", podB6, link...),
		"other unicast":        solicit(podA6, podA6, podB6, link...),
		"multicast target":     solicit(podA6, "ff02::1:ff00:1", "ff02::1", link...),
		"option of length 0":   solicit(podA6, node, podB6, 1, 0, 2, 1, 1, 1, 1, 1),
		"option too long":      solicit(podA6, node, podB6, 1, 2, 2, 1, 1, 1, 1, 1),
		"option cut":           solicit(podA6, node, podB6, 1, 1, 2),
		"not from this link":   far,
		"code":                 code,
		"wrong checksum":       sum,
		"advertisement":        spec{src: podA6, dst: podB6, proto: ICMPv6, icmp: ndAdvertise, payload: pattern(16)}.ip(),
		"too short":            spec{src: podA6, dst: podB6, proto: ICMPv6, icmp: ndSolicit, payload: pattern(15)}.ip(),
		"IPv4":                 spec{src: podA4, dst: podB4, proto: ICMPv4, icmp: ndSolicit, payload: pattern(16)}.ip(),
	} {
		p := mustParse(t, frame(VNetHdr{}, ip))
		before := bytes.Clone(p.Buf)
		if n := AnswerNS(p, ourMAC); n != 0 || !bytes.Equal(before, p.Buf) {
			t.Errorf("%s: answered with %d bytes, or changed", name, n)
		}
	}
	if n := AnswerNS(mustParseIP(t, solicit(podA6, node, podB6, link...)), ourMAC); n != 0 {
		t.Error("answered a packet without a frame")
	}
	p := mustParse(t, slices.Clip(frame(VNetHdr{}, solicit(podA6, podB6, podB6))))
	if n := AnswerNS(p, ourMAC); n != 0 {
		t.Error("wrote beyond the buffer's capacity")
	}
}
