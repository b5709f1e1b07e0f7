package udprelay

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

func TestThereAndBack(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w, out := newWorld(t, Options{}), server(t, f.outside)
			spec := netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Dst: at(out)}
			var ports []uint16
			for _, n := range []int{0, 1, 1000, 1372} {
				spec.Payload = pattern(n, 1)
				p := from(t, spec, 0)
				w.send(p)
				got, client := hear(t, out)
				if !bytes.Equal(got, spec.Payload) {
					t.Fatalf("%d bytes arrived outside, want %d, or others", len(got), n)
				}
				ports = append(ports, client.Port())
				if _, err := out.WriteToUDPAddrPort(spec.Payload, client); err != nil {
					t.Fatal(err)
				}
				if back := w.datagrams(p.Tuple.Reverse(), 1); !bytes.Equal(back[0], spec.Payload) {
					t.Fatalf("%d bytes came back, want %d, or others", len(back[0]), n)
				}
			}
			if ports = slices.Compact(ports); len(ports) != 1 || w.relay.Len() != 1 {
				t.Errorf("one conversation used ports %v", ports)
			}
			// Another port of the pod has another conversation.
			spec.Src = netip.AddrPortFrom(spec.Src.Addr(), 5001)
			w.send(from(t, spec, 0))
			if _, client := hear(t, out); client.Port() == ports[0] {
				t.Error("two conversations use one port")
			}
		})
	}
}

// Bytes after a datagram in its packet do not belong to it, and IPv4 allows a datagram without checksum.
func TestOddPackets(t *testing.T) {
	w, out := newWorld(t, Options{}), server(t, families[0].outside)
	ip := netstacktest.Spec{
		Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out), Proto: packet.UDP, Payload: []byte("datagram and more"),
	}.IP()
	be.PutUint16(ip[24:], 8+8)
	be.PutUint16(ip[26:], 0)
	var p packet.Packet
	if fault := p.ParseIP(ip); fault != packet.Good {
		t.Fatalf("fault %d", fault)
	}
	w.send(&p)
	if got, _ := hear(t, out); string(got) != "datagram" {
		t.Errorf("%q arrived", got)
	}
}

func TestSuperframes(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w, out := newWorld(t, Options{}), server(t, f.outside)
			const size, count = 1000, 40
			spec := netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Dst: at(out), Payload: pattern(count*size+500, 3)}
			p := from(t, spec, size)
			for _, noGSO := range []bool{false, true} {
				if c := w.relay.table.find(&p.Tuple); c != nil {
					c.noGSO.Store(noGSO)
				}
				w.send(p)
				var client netip.AddrPort
				for rest := spec.Payload; len(rest) > 0; {
					var got []byte
					got, client = hear(t, out)
					if n := min(size, len(rest)); !bytes.Equal(got, rest[:n]) {
						t.Fatalf("%d bytes arrived with %d to come", len(got), len(rest))
					}
					rest = rest[min(size, len(rest)):]
				}
				sendMany(t, out, client, spec.Payload, size)
				// On the loopback they stay one coalesced message.
				back := w.frame()
				if !bytes.Equal(back.IP[back.Payload:], spec.Payload) || back.VNet.GSOType != packet.GSOUDPL4 || back.VNet.GSOSize != size {
					t.Errorf("what came back is %d bytes of GSO size %d", back.Len(), back.VNet.GSOSize)
				}
			}
		})
	}
}

// sendMany sends data in datagrams of size bytes, with one system call.
func sendMany(t *testing.T, c *net.UDPConn, to netip.AddrPort, data []byte, size uint16) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	segment := func(size int) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
		if err != nil {
			t.Fatal(err)
		}
	}
	segment(int(size))
	defer segment(0)
	if _, err := c.WriteToUDPAddrPort(data, to); err != nil {
		t.Fatal(err)
	}
}

// Datagrams of all sizes come back in order, whether they arrived together or not.
func TestManyComeBack(t *testing.T) {
	for _, f := range families {
		w, out := newWorld(t, Options{}), server(t, f.outside)
		p := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Dst: at(out), Payload: []byte("hello")}, 0)
		w.send(p)
		_, client := hear(t, out)
		var want [][]byte
		for i, n := range []int{100, 100, 100, 50, 50, 0, 0, 1200, 7, 1372, 1372, 1372, 3, 100, 200} {
			want = append(want, pattern(n, byte(i)))
		}
		for range 4 { // as many as the socket's buffer holds
			for _, b := range want {
				if _, err := out.WriteToUDPAddrPort(b, client); err != nil {
					t.Fatal(err)
				}
			}
			if got := w.datagrams(p.Tuple.Reverse(), len(want)); !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("%s: other datagrams came back", f.name)
			}
		}
	}
}

// A datagram larger than the pods' MTU arrives in fragments, whether the kernel has coalesced it with others or not.
func TestFragmentsForThePod(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w, out := newWorld(t, Options{}), server(t, f.outside)
			p := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Dst: at(out), Payload: []byte("hello")}, 0)
			w.send(p)
			_, client := hear(t, out)
			one := pattern(4000, 5)
			if _, err := out.WriteToUDPAddrPort(one, client); err != nil {
				t.Fatal(err)
			}
			if got := w.reassembled(); !bytes.Equal(got, one) {
				t.Error("another datagram came back")
			}
			sendMany(t, out, client, slices.Concat(one, pattern(3000, 6)), 4000)
			if a, b := w.reassembled(), w.reassembled(); !bytes.Equal(a, one) || !bytes.Equal(b, pattern(3000, 6)) {
				t.Error("two coalesced datagrams came back as others")
			}
		})
	}
}

// reassembled reads the fragments of one datagram, which come in order, and returns its data.
func (w *world) reassembled() []byte {
	w.t.Helper()
	var ip []byte
	var id uint32
	for {
		p := w.frame()
		if p.Frag == packet.NoFrag || len(p.IP) > podMTU || ip != nil && p.FragID != id {
			w.t.Fatalf("a packet of %d bytes, fragment kind %d, id %d", len(p.IP), p.Frag, p.FragID)
		}
		id = p.FragID
		off, more := int(be.Uint16(p.IP[6:])&0x1fff)*8, be.Uint16(p.IP[6:])&0x2000 != 0
		l4 := 20
		if p.EtherType == packet.EtherIPv6 {
			l4 = 48
			off, more = int(be.Uint16(p.IP[42:])&^7), p.IP[43]&1 != 0
		}
		if ip == nil {
			ip = append(ip, p.IP[:l4]...)
		}
		if off != len(ip)-l4 {
			w.t.Fatalf("a fragment at %d, want %d", off, len(ip)-l4)
		}
		ip = append(ip, p.IP[l4:]...)
		if more {
			continue
		}
		if p.EtherType == packet.EtherIPv6 {
			ip[6] = ip[40]
			ip = slices.Delete(ip, 40, 48)
			be.PutUint16(ip[4:], uint16(len(ip)-40))
		} else {
			be.PutUint16(ip[2:], uint16(len(ip)))
			be.PutUint16(ip[6:], 0)
			be.PutUint16(ip[10:], 0)
			be.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
		}
		var whole packet.Packet
		if fault := whole.ParseIP(ip); fault != packet.Good || !whole.ChecksumOK() {
			w.t.Fatalf("the reassembled packet: fault %d, or a wrong checksum", fault)
		}
		return payload(&whole)
	}
}

func TestRefusedIsTold(t *testing.T) {
	for _, f := range families {
		w, out := newWorld(t, Options{}), server(t, f.outside)
		p := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Dst: at(out), Payload: []byte("hello")}, 0)
		_ = out.Close()
		w.send(p)
		e := w.frame()
		var quoted packet.Packet
		if !e.Embedded(&quoted) || quoted.Tuple != p.Tuple {
			t.Fatalf("%s: the pod was told of %+v, want %+v", f.name, quoted.Tuple, p.Tuple)
		}
		want := [2]uint8{3, 3}
		if e.EtherType == packet.EtherIPv6 {
			want = [2]uint8{1, 4}
		}
		if got := [2]uint8{e.ICMPType, e.ICMPCode}; got != want {
			t.Errorf("%s: the pod was told %v, want %v", f.name, got, want)
		}
	}
}

// A datagram larger than the path MTU that the host knows is refused with that MTU, unless it may be fragmented.
func TestPathMTU(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	const narrow = 1300
	if err := netlink.LinkSetMTU(lo, narrow); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkSetMTU(lo, 65536) })
	for _, f := range families {
		w, out := newWorld(t, Options{}), server(t, f.outside)
		spec := netstacktest.Spec{Src: netip.MustParseAddrPort(f.pod), Dst: at(out), Payload: pattern(1350, 1)}
		if mtu, err := w.relay.Send(from(t, spec, 0)); !errors.Is(err, ErrTooBig) || mtu != narrow {
			t.Errorf("%s: %v, MTU %d; want MTU %d", f.name, err, mtu, narrow)
		}
		super := spec
		super.Payload = pattern(3*1350, 2)
		if mtu, err := w.relay.Send(from(t, super, 1350)); !errors.Is(err, ErrTooBig) || mtu != narrow {
			t.Errorf("%s, superframe: %v, MTU %d; want MTU %d", f.name, err, mtu, narrow)
		}
		p := from(t, spec, 0)
		p.DontFragment = false
		w.send(p)
		if got, _ := hear(t, out); !bytes.Equal(got, spec.Payload) {
			t.Errorf("%s: other bytes arrived in fragments", f.name)
		}
		p = from(t, super, 1350)
		p.DontFragment = false
		w.send(p)
		for i := range 3 {
			if got, _ := hear(t, out); !bytes.Equal(got, super.Payload[i*1350:(i+1)*1350]) {
				t.Errorf("%s: datagram %d of a superframe arrived as another", f.name, i)
			}
		}
	}
}

func TestNoWayThere(t *testing.T) {
	w := newWorld(t, Options{})
	for _, s := range []netstacktest.Spec{
		{Src: netip.MustParseAddrPort("10.244.1.10:1"), Dst: netip.MustParseAddrPort("198.51.100.1:53")},
		{Src: netip.MustParseAddrPort("[fd00::10]:1"), Dst: netip.MustParseAddrPort("[2001:db8:1::1]:53")},
	} {
		if _, err := w.relay.Send(from(t, s, 0)); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("to %s: %v", s.Dst, err)
		}
	}
	if n := w.relay.Len(); n != 0 {
		t.Errorf("%d conversations", n)
	}
}

func TestIdleConversationsEnd(t *testing.T) {
	w, out := newWorld(t, Options{Idle: time.Minute}), server(t, families[0].outside)
	spec := netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out)}
	other := spec
	other.Src = netip.AddrPortFrom(spec.Src.Addr(), 5001)
	after := func(d time.Duration) { w.relay.Sweep(w.relay.start.Add(d)) }
	w.send(from(t, spec, 0))
	w.send(from(t, other, 0))
	_, client := hear(t, out)
	hear(t, out)
	after(40 * time.Second)
	// An answer keeps the conversation as well.
	if _, err := out.WriteToUDPAddrPort([]byte("answer"), client); err != nil {
		t.Fatal(err)
	}
	w.datagrams(from(t, spec, 0).Tuple.Reverse(), 1)
	after(60 * time.Second)
	if n := w.relay.Len(); n != 2 {
		t.Errorf("%d conversations after a minute, want 2", n)
	}
	after(61 * time.Second)
	if n := w.relay.Len(); n != 1 || w.relay.table.find(&from(t, spec, 0).Tuple) == nil {
		t.Errorf("%d conversations after more than a minute, want the one that was answered", n)
	}
	after(101 * time.Second)
	if n := w.relay.Len(); n != 0 {
		t.Errorf("%d conversations in the end", n)
	}
	w.send(from(t, spec, 0))
	if _, again := hear(t, out); again == client {
		t.Error("the port of a conversation that ended is still in use")
	}
}

func TestForget(t *testing.T) {
	w, out := newWorld(t, Options{}), server(t, families[0].outside)
	var gone, stays netip.Addr = netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("10.244.1.11")
	for port := range uint16(10) {
		for _, pod := range []netip.Addr{gone, stays} {
			w.send(from(t, netstacktest.Spec{Src: netip.AddrPortFrom(pod, 1+port), Dst: at(out)}, 0))
			hear(t, out)
		}
	}
	w.relay.Forget(gone)
	for _, c := range w.relay.order {
		if c.tuple.Src != packet.AddrFrom(stays) {
			t.Errorf("a conversation of %s is left", c.tuple.Src)
		}
	}
	if n := w.relay.Len(); n != 10 {
		t.Errorf("%d conversations, want those of the other pod", n)
	}
}

// When there is no room, the longest idle conversation ends.
func TestBound(t *testing.T) {
	w, out := newWorld(t, Options{MaxSockets: 3}), server(t, families[1].outside)
	of := func(port uint16) *packet.Packet {
		src := netip.AddrPortFrom(netip.MustParseAddrPort(families[1].pod).Addr(), port)
		return from(t, netstacktest.Spec{Src: src, Dst: at(out)}, 0)
	}
	for i, port := range []uint16{1, 2, 3, 1, 4, 3, 5} {
		w.relay.Sweep(w.relay.start.Add(time.Duration(i) * time.Second))
		w.send(of(port))
		hear(t, out)
	}
	for port, want := range []bool{1: false, 2: false, 3: true, 4: true, 5: true} {
		if got := w.relay.table.find(&of(uint16(port)).Tuple) != nil; got != want && port > 0 {
			t.Errorf("conversation %d is there: %v", port, got)
		}
	}
}

// When descriptors run out, a new conversation takes the place of the oldest.
func TestDescriptorsRunOut(t *testing.T) {
	w, out := newWorld(t, Options{}), server(t, families[0].outside)
	of := func(port uint16) *packet.Packet {
		src := netip.AddrPortFrom(netip.MustParseAddrPort(families[0].pod).Addr(), port)
		return from(t, netstacktest.Spec{Src: src, Dst: at(out)}, 0)
	}
	w.send(of(1))
	hear(t, out)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := w.relay.Send(of(2))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	// No number below the limit is free: the socket that was closed to make room had a higher one.
	if !errors.Is(err, unix.EMFILE) || w.relay.Len() != 0 {
		t.Errorf("%v with %d conversations", err, w.relay.Len())
	}
	w.send(of(2))
	hear(t, out)
}

func TestClose(t *testing.T) {
	w, out := newWorld(t, Options{}), server(t, families[0].outside)
	p := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out)}, 0)
	w.send(p)
	w.relay.Close()
	if n := w.relay.Len(); n != 0 {
		t.Errorf("%d conversations after Close", n)
	}
	if _, err := w.relay.Send(p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
}

// Pods send while conversations end for every possible reason.
func TestConcurrent(t *testing.T) {
	w, out := newWorld(t, Options{MaxSockets: 4, Idle: time.Millisecond}), server(t, families[0].outside)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.relay.Run(ctx) })
	wg.Go(func() {
		b := make([]byte, 100)
		for {
			n, client, err := out.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = out.WriteToUDPAddrPort(b[:n], client)
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-w.toPod:
			case <-ctx.Done():
				return
			}
		}
	})
	var pods sync.WaitGroup
	for i := range 4 {
		pods.Go(func() {
			src := netip.MustParseAddr("10.244.1.10")
			for n := range 2000 {
				p := from(t, netstacktest.Spec{Src: netip.AddrPortFrom(src, uint16(n%3+i)), Dst: at(out), Payload: []byte("x")}, 0)
				if _, err := w.relay.Send(p); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrTooMany) {
					t.Errorf("%v", err)
					return
				}
			}
		})
	}
	pods.Wait()
	stop()
	_ = out.Close()
	wg.Wait()
}

func TestSendAllocatesNothing(t *testing.T) {
	w, out := newWorld(t, Options{}), server(t, families[0].outside)
	p := from(t, netstacktest.Spec{Src: netip.MustParseAddrPort(families[0].pod), Dst: at(out), Payload: pattern(3000, 0)}, 1000)
	w.send(p)
	if n := testing.AllocsPerRun(100, func() { _, _ = w.relay.Send(p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
