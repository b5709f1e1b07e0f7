package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// clients is the number of connections to which the packets below belong: a single flow would stay in the nearest
// cache.
const clients = 256

// walk is one kind of packets on their way through the pipeline, from many connections in turn. In the specs the
// client's port is 1.
type walk struct {
	name    string
	from    string              // the attachment from which the packets are read
	opening []netstacktest.Spec // sent once for every client, from the attachment with their source address
	packets []netstacktest.Spec // sent in turn
	verdict Verdict             // of the packets
	reason  DropReason          // of the packets, if any
}

const (
	podA, podB = "10.244.1.10", "10.244.1.11"
	payload    = 1200
)

// walks lists what the pipeline does with packets of pods. Without a Policy, the first step (admit) and the packet's
// flow decide whether the packet may go on.
func walks() []walk {
	cluster, direct := segment(podA+":1", "10.96.0.1:80", packet.ACK), segment(podA+":1", podB+":80", packet.ACK)
	reply := segment(podB+":8080", podA+":1", packet.ACK)
	remote := datagram(podA+":1", "10.244.2.11:80")
	syn, rst := cluster, cluster
	syn.TCPFlags, rst.TCPFlags = packet.SYN, packet.RST
	one := func(s netstacktest.Spec) []netstacktest.Spec { return []netstacktest.Spec{s} }
	return []walk{
		{name: "hit", from: podA, opening: one(direct), packets: one(direct), verdict: ToTAP},
		{name: "translated", from: podA, opening: one(cluster), packets: one(cluster), verdict: ToTAP},
		{name: "translated reply", from: podB, opening: one(cluster), packets: one(reply), verdict: ToTAP},
		{name: "other node", from: podA, opening: one(remote), packets: one(remote), verdict: ToLink},
		// The reset ends the flow, so that the next SYN begins one.
		{name: "new flow and reset", from: podA, packets: []netstacktest.Spec{syn, rst}, verdict: ToTAP},
		{name: "refused", from: podA, packets: one(segment(podA+":1", "10.96.0.2:80", packet.SYN)), verdict: Answered, reason: UnknownPort},
		{name: "spoofed", from: podA, packets: one(segment("10.244.1.99:1", podB+":80", packet.ACK)), verdict: Dropped, reason: Spoofed},
	}
}

// ready prepares the walk. Each call of the function it returns sends the next packet, of n bytes.
func (wk *walk) ready(t testing.TB) (w *worker, n int, send func()) {
	w, _ = hotNode(t)
	w.path.snapshot.Load().balancer = hotBalancer{}
	buf := make([]byte, packet.MaxFrame)
	ports := w.path.attachments.table.Load().byName
	frames := func(specs []netstacktest.Spec) (fs [][]byte) {
		for i := range clients {
			for _, s := range specs {
				if s.Src.Port() == 1 {
					s.Src = netip.AddrPortFrom(s.Src.Addr(), uint16(20000+i))
				} else {
					s.Dst = netip.AddrPortFrom(s.Dst.Addr(), uint16(20000+i))
				}
				s.Payload = make([]byte, payload)
				if s.TCPFlags&(packet.SYN|packet.RST) != 0 {
					s.Payload = nil
				}
				fs = append(fs, s.Frame(packet.MAC{2, 1}, tap.RouterMAC))
			}
		}
		return fs
	}
	for _, f := range frames(wk.opening) {
		w.from = ports[wk.opening[0].Src.Addr().String()]
		buf = w.fromTAP(buf[:copy(buf, f)])
	}
	w.from = ports[wk.from]
	fs, i := frames(wk.packets), 0
	return w, len(fs[0]), func() {
		n := copy(buf[:cap(buf)], fs[i])
		if i++; i == len(fs) {
			i = 0
		}
		buf = w.fromTAP(buf[:n])
	}
}

func TestWalksAllocateNothing(t *testing.T) {
	for _, wk := range walks() {
		t.Run(wk.name, func(t *testing.T) {
			w, _, send := wk.ready(t)
			before, why := w.verdicts[wk.verdict].Load(), w.drops[wk.reason].Load()
			if n := testing.AllocsPerRun(2*clients, send); n != 0 {
				t.Errorf("%v allocations per packet", n)
			}
			const sent = 2*clients + 1 // AllocsPerRun first warms up with one run
			if n := w.verdicts[wk.verdict].Load() - before; n != sent {
				t.Errorf("%d of %d packets are %v: %+v", n, sent, wk.verdict, w.path.Stats())
			}
			if n := w.drops[wk.reason].Load() - why; wk.reason != NotDropped && n != sent {
				t.Errorf("%d of %d packets are %v: %+v", n, sent, wk.reason, w.path.Stats())
			}
		})
	}
}

// BenchmarkHotPath takes one frame through the whole pipeline, from the buffer into which it was read to the write. The
// time includes filling that buffer (a copy of 1.2 kB instead of the system call).
func BenchmarkHotPath(b *testing.B) {
	for _, wk := range walks() {
		b.Run(wk.name, func(b *testing.B) {
			_, n, send := wk.ready(b)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
		})
	}
}

// BenchmarkAdmit measures the step that judges whether a pod's packet may enter at all.
func BenchmarkAdmit(b *testing.B) {
	w, _ := hotNode(b)
	s := w.path.snapshot.Load()
	for _, c := range []struct {
		name, src string
		stopped   bool
	}{{"own address", podA, false}, {"spoofed", "10.244.1.99", true}} {
		b.Run(c.name, func(b *testing.B) {
			var pkts [clients]packet.Packet
			for i := range pkts {
				src := netip.AddrPortFrom(netip.MustParseAddr(c.src), uint16(20000+i)).String()
				if f := pkts[i].ParseFrame(segment(src, podB+":80", packet.ACK).Frame(packet.MAC{2, 1}, tap.RouterMAC)); f != packet.Good {
					b.Fatal(f)
				}
			}
			j := &journey{origin: origin{from: w.from}}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				j.packet = &pkts[i%clients]
				if admitted := w.admit(s, j); admitted == c.stopped {
					b.Fatal(admitted)
				}
				i++
			}
		})
	}
}

// linkBatch is a batch as WireGuard decrypts it: 44 packets of one known connection from another node.
func linkBatch(t testing.TB) (w *worker, size int, receive func()) {
	w, _ = hotNode(t)
	var orig [][]byte
	for i := range 44 {
		s := segment("10.244.2.11:80", podA+":20000", packet.ACK)
		s.Payload = make([]byte, 1380)
		ip := s.IP()
		// Consecutive sequence numbers, which Spec does not have, let the packets be joined.
		seq, head := uint32(i*1380), ip[20:]
		sum := uint32(head[16])<<8 | uint32(head[17])
		head[4], head[5], head[6], head[7] = byte(seq>>24), byte(seq>>16), byte(seq>>8), byte(seq)
		fixed := ^packet.Checksum(head[4:8], uint32(^uint16(sum)))
		head[16], head[17] = byte(fixed>>8), byte(fixed)
		orig = append(orig, ip)
		size += len(ip)
	}
	first, batch := bytes.Clone(orig[0]), make([][]byte, len(orig))
	return w, size, func() {
		copy(orig[0], first) // its header was rewritten in place
		copy(batch, orig)
		w.fromLink(node2, batch)
	}
}

func TestFromLinkAllocatesNothing(t *testing.T) {
	w, _, receive := linkBatch(t)
	if n := testing.AllocsPerRun(100, receive); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
	if got := w.verdicts[ToTAP].Load(); got != 101 {
		t.Errorf("101 batches became %d frames, want one each: %+v", got, w.path.Stats())
	}
}

// BenchmarkFromLink takes a batch of 44 packets from the Link, which are joined into one superframe for a pod.
func BenchmarkFromLink(b *testing.B) {
	_, size, receive := linkBatch(b)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		receive()
	}
}

// BenchmarkFromLinkFlows measures one packet of a batch of 64 from the Link; each packet is of another flow, chosen at
// random.
func BenchmarkFromLinkFlows(b *testing.B) {
	for _, flows := range []uint32{1000, 1 << 20} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			w, _ := hotNodeOf(b, int(flows))
			template := datagram("10.244.2.11:80", podA+":20000").IP()
			template[26], template[27] = 0, 0 // no checksum: the ports would change it
			bufs, batch := make([][]byte, 64), make([][]byte, 64)
			for i := range bufs {
				bufs[i] = bytes.Clone(template)
			}
			receive := func(flow func(i int) uint32) {
				for i, ip := range bufs {
					n := flow(i)
					binary.BigEndian.PutUint32(ip[20:], (1024+n%16)<<16|n/16) // the ports
				}
				copy(batch, bufs)
				w.fromLink(node2, batch)
			}
			for n := uint32(0); n < flows; n += uint32(len(batch)) {
				receive(func(i int) uint32 { return (n + uint32(i)) % flows })
			}
			r, at := rand.New(rand.NewPCG(1, 2)), 0
			b.ReportAllocs()
			for b.Loop() {
				if at++; at%len(batch) == 0 {
					receive(func(int) uint32 { return r.Uint32N(flows) })
				}
			}
			if s := w.path.flows.Stats(); s.Len != int(flows) || s.Full != 0 {
				b.Errorf("%+v", s)
			}
		})
	}
}
