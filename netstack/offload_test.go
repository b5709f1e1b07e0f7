package netstack

import (
	"bytes"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

func TestCountsOn(t *testing.T) {
	for _, tc := range []struct {
		name       string
		flags, gso uint8
		want       tap.Offloads
	}{
		{"whole", 0, packet.GSONone, 0},
		{"checksum verified", packet.DataValid, packet.GSONone, 0},
		{"partial checksum", packet.NeedsCsum, packet.GSONone, tap.Csum},
		{"TCP over IPv4", packet.NeedsCsum, packet.GSOTCPv4, tap.Csum | tap.TSO4},
		{"with ECN", packet.NeedsCsum, packet.GSOTCPv4 | packet.GSOECN, tap.Csum | tap.TSO4},
		{"TCP over IPv6", packet.NeedsCsum, packet.GSOTCPv6, tap.Csum | tap.TSO6},
		{"UDP", packet.NeedsCsum, packet.GSOUDPL4, tap.Csum | tap.USO},
	} {
		if got := countsOn(&packet.VNetHdr{Flags: tc.flags, GSOType: tc.gso}); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// super turns a packet into a superframe with segments of size bytes, as a pod's kernel would make it.
func super(s netstacktest.Spec, src packet.MAC, size int) []byte {
	f := s.Frame(src, tap.RouterMAC)
	var p packet.Packet
	if p.ParseFrame(f) != packet.Good {
		panic("not a good packet")
	}
	v := packet.VNetHdr{
		Flags: packet.NeedsCsum, GSOType: packet.GSOTCPv4, GSOSize: uint16(size),
		HdrLen: uint16(packet.EthLen + p.Payload), CsumStart: uint16(packet.EthLen + p.L4), CsumOffset: 16,
	}
	switch {
	case s.Proto == packet.UDP:
		v.GSOType, v.CsumOffset = packet.GSOUDPL4, 6
	case s.Src.Addr().Is6():
		v.GSOType = packet.GSOTCPv6
	}
	if size == 0 {
		v.GSOType = packet.GSONone
	}
	v.Encode(f)
	// The field of a partial checksum holds the sum of the pseudo header.
	l4 := p.IP[p.L4:]
	addresses := p.IP[12:20]
	if s.Src.Addr().Is6() {
		addresses = p.IP[8:40]
	}
	sum := packet.Checksum(addresses, uint32(s.Proto)+uint32(len(l4)))
	l4[v.CsumOffset], l4[v.CsumOffset+1] = byte(sum>>8), byte(sum)
	return f
}

// TestPlainTAP sends superframes and partial checksums to attachments that lack the offloads these rely on.
func TestPlainTAP(t *testing.T) {
	payload := make([]byte, 3000)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	tcp4 := netstacktest.Spec{Src: ap("10.244.1.10:1000"), Dst: ap("10.244.1.12:80"), Proto: packet.TCP, TCPFlags: packet.ACK | packet.PSH, Payload: payload}
	tcp6 := tcp4
	tcp6.Src, tcp6.Dst = ap("[fd00:10:244:1::10]:1000"), ap("[fd00:10:244:1::12]:80")
	udp := tcp4
	udp.Proto = packet.UDP
	for _, tc := range []struct {
		name     string
		has      tap.Offloads
		spec     netstacktest.Spec
		size     int
		segments int  // frames expected
		left     bool // the frame passes unchanged
	}{
		{"all", tap.AllOffloads, tcp4, 1000, 1, true},
		{"no tso4", tap.AllOffloads &^ tap.TSO4, tcp4, 1000, 3, false},
		{"no tso4, IPv6", tap.AllOffloads &^ tap.TSO4, tcp6, 1000, 1, true},
		{"no tso4, a packet", tap.AllOffloads &^ tap.TSO4, tcp4, 0, 1, true},
		{"no tso6", tap.AllOffloads &^ tap.TSO6, tcp6, 1000, 3, false},
		{"no tso6, IPv4", tap.AllOffloads &^ tap.TSO6, tcp4, 1000, 1, true},
		{"no uso", tap.AllOffloads &^ tap.USO, udp, 1000, 3, false},
		{"no uso, TCP", tap.AllOffloads &^ tap.USO, tcp4, 1000, 1, true},
		{"none, TCP", 0, tcp4, 900, 4, false},
		{"none, UDP", 0, udp, 1400, 3, false},
		{"none, a packet", 0, tcp6, 0, 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.macs["c"] = packet.MAC{2, 0, 0, 0, 0, 0xc}
			w.devices["c"] = netstacktest.NewDeviceWith(tc.has)
			c := AttachmentConfig{Name: "c", MAC: w.macs["c"], Addrs: addresstest.Addrs("10.244.1.12", "fd00:10:244:1::12")}
			if err := w.path.Attach(c, w.devices["c"]); err != nil {
				t.Fatal(err)
			}
			w.devices["a"].Send(super(tc.spec, w.macs["a"], tc.size))
			var got []byte
			for i := range tc.segments {
				var f []byte
				select {
				case f = <-w.devices["c"].Frames():
				case <-time.After(await.Patience):
					t.Fatalf("%d frames arrived, want %d; %v", i, tc.segments, w.path.Stats())
				}
				var p packet.Packet
				if fault := p.ParseFrame(f); fault != packet.Good || p.DstMAC() != w.macs["c"] {
					t.Fatalf("frame %d: fault %d, for %x", i, fault, p.DstMAC())
				}
				partial := p.VNet.Flags&packet.NeedsCsum != 0
				if partial != tc.left || !partial && !p.ChecksumOK() {
					t.Errorf("frame %d: partial checksum: %v, want %v; checksum right: %v", i, partial, tc.left, p.ChecksumOK())
				}
				if tc.size > 0 && !tc.left && len(p.IP) > p.Payload+tc.size {
					t.Errorf("frame %d has %d bytes of payload, want at most %d", i, len(p.IP)-p.Payload, tc.size)
				}
				got = append(got, p.IP[p.Payload:]...)
			}
			if !bytes.Equal(got, payload) {
				t.Errorf("%d bytes arrived, not those that were sent", len(got))
			}
			if n := len(w.devices["c"].Frames()); n > 0 {
				t.Errorf("%d further frames arrived", n)
			}
		})
	}
}

// TestPlainTAPFromLink sends packets of one flow from the Link, which are coalesced, to an attachment without offloads.
func TestPlainPortFromLink(t *testing.T) {
	w := newWorld(t)
	w.devices["c"] = netstacktest.NewDeviceWith(0)
	w.macs["c"] = packet.MAC{2, 0, 0, 0, 0, 0xc}
	if err := w.path.Attach(AttachmentConfig{Name: "c", MAC: w.macs["c"], Addrs: addresstest.Addrs("10.244.1.12")}, w.devices["c"]); err != nil {
		t.Fatal(err)
	}
	var batch [][]byte
	for i := range 3 {
		s := segment("10.244.2.10:1000", "10.244.1.12:80", packet.ACK)
		s.Payload = make([]byte, 1000)
		ip := s.IP()
		seq := i * 1000
		ip[26], ip[27] = byte(seq>>8), byte(seq)
		var p packet.Packet
		if p.ParseIP(ip) != packet.Good {
			t.Fatal("not a good packet")
		}
		p.VNet.Flags = packet.NeedsCsum
		p.CompleteChecksum()
		batch = append(batch, ip)
	}
	w.path.FromLink(node2, batch)
	for range batch {
		w.expect("c", "tcp 10.244.2.10:1000 > 10.244.1.12:80 A")
	}
	if s := w.path.Stats(); s.Verdicts["to-tap"] != 1 {
		t.Errorf("verdicts %v, want one for what was coalesced", s.Verdicts)
	}
}
