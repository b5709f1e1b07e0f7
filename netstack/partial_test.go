package netstack

import (
	"bytes"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// frame returns the next frame that a pod gets.
func (w *world) frame(where string) *packet.Packet {
	w.t.Helper()
	p := new(packet.Packet)
	select {
	case f := <-w.devices[where].Frames():
		if fault := p.ParseFrame(f); fault != packet.Good {
			w.t.Fatalf("%s got a packet with fault %d", where, fault)
		}
	case <-time.After(await.Patience):
		w.t.Fatalf("%s got nothing; %v", where, w.path.Stats())
	}
	return p
}

// TestPartialFromLink sends packets with partial checksums from the Link to attachments with and without offloads, with
// and without translation. Completing the checksum must give the right one.
func TestPartialFromLink(t *testing.T) {
	reply := segment("10.244.2.10:8080", "10.244.1.10:1000", packet.SYN|packet.ACK)
	for _, c := range []struct {
		name, from string
		answers    *netstacktest.Spec // a pod's packet that is sent first
		spec       netstacktest.Spec
		to         string
		partial    bool
	}{
		{"TCP", "node-2", nil, segment("10.244.2.10:1", "10.244.1.10:2", packet.SYN), "a", true},
		{"UDP", "node-2", nil, datagram("10.244.2.10:1", "10.244.1.10:2"), "a", true},
		{"TCP, IPv6", "node-2", nil, segment("[fd00:10:244:2::10]:1", "[fd00:10:244:1::10]:2", packet.SYN), "a", true},
		{"translated back", "node-2", new(segment("10.244.1.10:1000", "10.96.0.2:80", packet.SYN)), reply, "a", true},
		{"UDP, translated back", "node-2", new(datagram("10.244.1.10:1000", "10.96.0.5:53")), datagram("10.244.2.10:5353", "10.244.1.10:1000"), "a", true},
		{"encapsulated", "node-2 encap", nil, datagram("198.51.100.7:4000", "10.244.1.10:8080"), "a", true},
		{"to the host", "node-2", nil, segment("10.244.2.10:1", "172.31.0.11:2", packet.SYN), "host", true},
		{"to a TAP that cannot", "node-2", nil, segment("10.244.2.10:1", "10.244.1.12:2", packet.SYN), "plain", false},
		{"translated, to a TAP that cannot", "node-2", new(datagram("10.244.1.12:1000", "10.96.0.5:53")),
			datagram("10.244.2.10:5353", "10.244.1.12:1000"), "plain", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.devices["plain"], w.macs["plain"] = netstacktest.NewDeviceWith(0), packet.MAC{2, 0, 0, 0, 0, 9}
			plain := AttachmentConfig{Name: "plain", MAC: w.macs["plain"], Addrs: addresstest.Addrs("10.244.1.12")}
			if err := w.path.Attach(plain, w.devices["plain"]); err != nil {
				t.Fatal(err)
			}
			if c.answers != nil {
				w.from(c.to, *c.answers)
				<-w.link.Sent()
			}
			c.spec.Partial = true
			w.from(c.from, c.spec)
			p := w.frame(c.to)
			if got := p.VNet.Flags&packet.NeedsCsum != 0; got != c.partial {
				t.Fatalf("partial: %v, want %v", got, c.partial)
			}
			if c.answers != nil && (p.Tuple.Src != packet.AddrFrom(c.answers.Dst.Addr()) || p.Tuple.SrcPort != c.answers.Dst.Port()) {
				t.Errorf("from %s:%d, want the Service's %s", p.Tuple.Src, p.Tuple.SrcPort, c.answers.Dst)
			}
			// As the kernel does: sum up from csum_start, with the field as it is.
			if c.partial {
				field := p.IP[p.L4+int(p.VNet.CsumOffset):]
				sum := ^packet.Checksum(p.IP[p.L4:], 0)
				field[0], field[1] = byte(sum>>8), byte(sum)
				p.VNet = packet.VNetHdr{}
			}
			if !p.ChecksumOK() {
				t.Error("the checksum is wrong")
			}
		})
	}
}

// A peer without an agent sends no partial checksums: a checksum that looks partial is wrong.
func TestPartialFromStock(t *testing.T) {
	w := newWorld(t)
	s := segment("10.244.9.7:1", "10.244.1.10:2", packet.SYN)
	s.Partial = true
	sent := s.IP()
	w.from("stock", s)
	if p := w.frame("a"); p.VNet.Flags != 0 || !bytes.Equal(p.IP, sent) {
		t.Errorf("virtio-net header %+v: the pod would not verify it", p.VNet)
	}
	w.from("stock", withTo(s, "10.96.0.10:53"))
	w.dropped(Malformed)
	w.from("node-2", withTo(s, "10.96.0.10:53", "10.244.2.7:1"))
	w.expect("link", "node-2 tcp 10.96.0.10:53 > 10.244.2.7:1 RA")
}

// withTo returns s with another destination, and with another source if one is given.
func withTo(s netstacktest.Spec, dst string, src ...string) netstacktest.Spec {
	s.Dst = ap(dst)
	for _, from := range src {
		s.Src = ap(from)
	}
	return s
}

// What leaves for a network that completes no checksums has full ones: fragments, and packets quoted in ICMP errors.
func TestPartialIsCompleted(t *testing.T) {
	w := newWorld(t)
	w.link.SetMTU(1300)
	s := datagram("10.244.1.10:1000", "10.244.2.10:53")
	s.MayFrag, s.Payload = true, bytes.Repeat([]byte("fragment"), 170)
	w.devices["a"].Send(super(s, w.macs["a"], 0))
	var whole []byte
	for range 2 {
		sent := <-w.link.Sent()
		var p packet.Packet
		if f := p.ParseIP(sent.Packets[0]); f != packet.Good || p.Frag == packet.NoFrag {
			t.Fatalf("fault %d, fragment %d", f, p.Frag)
		}
		whole = append(whole, p.IP[p.L4:]...)
	}
	want := s.IP()[20:]
	if !bytes.Equal(whole, want) {
		t.Errorf("the datagram that was fragmented begins with % x, want % x", whole[:8], want[:8])
	}

	lost := datagram("10.244.2.10:1000", "10.244.1.99:53")
	lost.Partial = true
	w.from("node-2", lost)
	sent := <-w.link.Sent()
	var e, in packet.Packet
	if e.ParseIP(sent.Packets[0]) != packet.Good || !e.Embedded(&in) {
		t.Fatal("no ICMP error came back")
	}
	lost.Partial = false
	if want := lost.IP(); !bytes.Equal(in.IP, want) {
		t.Errorf("quoted % x, want % x", in.IP, want)
	}
}

// Packets with partial checksums from the Link cause no allocation, and become the same number of frames as others.
func TestPartialFromLinkAllocatesNothing(t *testing.T) {
	w, _ := hotNode(t)
	s := datagram("10.244.2.11:80", podA+":20000")
	s.Partial = true
	ip := s.IP()
	first, batch := bytes.Clone(ip), make([][]byte, 1)
	n := testing.AllocsPerRun(100, func() {
		copy(ip, first)
		batch[0] = ip
		w.fromLink(node2, batch)
	})
	if n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
	if got := w.verdicts[ToTAP].Load(); got != 101 {
		t.Errorf("101 packets became %d frames: %+v", got, w.path.Stats())
	}
}
