package dgram

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// message is a control message.
type message struct {
	level, kind int
	data        []byte
}

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// control returns memory with control messages as a kernel writes them. wrong is added to the length field of the last
// one.
func control(wrong int, messages ...message) (*Control, *unix.Msghdr) {
	c, m := new(Control), new(unix.Msghdr)
	c.For(m)
	b := unsafe.Slice((*byte)(unsafe.Pointer(&c.raw)), unsafe.Sizeof(c.raw))
	at := 0
	for i, msg := range messages {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
		h.Level, h.Type = int32(msg.level), int32(msg.kind)
		h.SetLen(unix.CmsgLen(len(msg.data)))
		copy(b[at+unix.CmsgLen(0):], msg.data)
		if i == len(messages)-1 {
			h.Len += uint64(wrong)
		}
		at += unix.CmsgSpace(len(msg.data))
	}
	m.SetControllen(at)
	return c, m
}

func TestControl(t *testing.T) {
	ttl4, tos4 := message{unix.IPPROTO_IP, unix.IP_TTL, number(17)}, message{unix.IPPROTO_IP, unix.IP_TOS, []byte{0xb8}}
	ttl6, tos6 := message{unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, number(17)}, message{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, number(0xb8)}
	gro := message{unix.SOL_UDP, unix.UDP_GRO, number(1200)}
	for _, c := range []struct {
		name     string
		wrong    int
		messages []message
		want     Head
		size     int
	}{
		{name: "nothing"},
		{"IPv4", 0, []message{gro, ttl4, tos4}, Head{TTL: 17, Class: 0xb8}, 1200},
		{"IPv6", 0, []message{tos6, gro, ttl6}, Head{TTL: 17, Class: 0xb8}, 1200},
		{"one datagram", 0, []message{ttl4}, Head{TTL: 17}, 0},
		{"others", 0, []message{{unix.SOL_SOCKET, unix.SO_TIMESTAMP, make([]byte, 16)}, tos4}, Head{Class: 0xb8}, 0},
		{"longer than what is there", 100, []message{gro, ttl4}, Head{}, 1200},
		{"shorter than its head", -19, []message{gro, ttl4}, Head{}, 1200},
		{"too short", -2, []message{gro, ttl4}, Head{}, 1200},
	} {
		ctl, m := control(c.wrong, c.messages...)
		if h, size := ctl.Read(m); h != c.want || size != c.size {
			t.Errorf("%s: %+v and %d, want %+v and %d", c.name, h, size, c.want, c.size)
		}
		if n := testing.AllocsPerRun(10, func() { ctl.Read(m) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

// A reply leaves from the address to which the datagram was sent, if that is the address of one host.
func TestLocal(t *testing.T) {
	to4 := func(to string) message { // the second word is the address of the interface, if to is not this host's
		b := append(number(1), 192, 0, 2, 1)
		return message{unix.IPPROTO_IP, unix.IP_PKTINFO, append(b, netip.MustParseAddr(to).AsSlice()...)}
	}
	to6 := func(to string) message {
		return message{unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(netip.MustParseAddr(to).AsSlice(), number(1)...)}
	}
	for _, c := range []struct {
		name     string
		messages []message
		want     string // "": none
	}{
		{"unicast", []message{to4("192.0.2.1")}, "192.0.2.1"},
		{"broadcast", []message{to4("255.255.255.255")}, "192.0.2.1"},
		{"multicast", []message{to4("224.0.0.1")}, "192.0.2.1"},
		{"after others", []message{{unix.IPPROTO_IP, unix.IP_TTL, number(3)}, to4("192.0.2.1")}, "192.0.2.1"},
		{"IPv6", []message{to6("2001:db8::1")}, "2001:db8::1"},
		{"IPv6 multicast", []message{to6("ff02::1")}, ""},
		{"nothing", nil, ""},
	} {
		ctl, m := new(Control), new(unix.Msghdr)
		if ctl.For(m); c.messages != nil {
			ctl, m = control(0, c.messages...)
		} else {
			m.SetControllen(0)
		}
		var want packet.Addr
		if c.want != "" {
			want = packet.AddrFrom(netip.MustParseAddr(c.want))
		}
		if got := ctl.Local(m); got != want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// An address with a zone becomes the same again.
func TestZone(t *testing.T) {
	for _, s := range []string{"[fe80::1%7]:53", "[2001:db8::1]:53", "192.0.2.1:53"} {
		want := netip.MustParseAddrPort(s)
		if a := AddrFrom(want); a.AddrPort() != want {
			t.Errorf("%s became %s", s, a.AddrPort())
		}
	}
}

// The content and the sender of an error are found after other control messages.
func TestExtended(t *testing.T) {
	said := append(number(uint32(unix.EHOSTUNREACH)), fromICMP, timeExceeded, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	router := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
	router = append(router, 0, 0, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0)
	ctl, m := control(0, message{unix.IPPROTO_IP, unix.IP_TTL, number(1)}, message{unix.IPPROTO_IP, unix.IP_RECVERR, append(said, router...)})
	e := ctl.error(m)
	why, ok := e.why()
	by, is := e.by.Endpoint()
	if !ok || why != packet.TimeExceeded || !is || by.Addr != packet.AddrFrom(netip.MustParseAddr("192.0.2.7")) {
		t.Errorf("%d, %v, by %s, %v", why, ok, by.Addr, is)
	}
	none, m := control(0, message{unix.IPPROTO_IP, unix.IP_TTL, number(1)})
	if e = none.error(m); e != (extended{}) {
		t.Errorf("%+v out of nothing", e)
	}
}

// HeadOf reads back what Put has written.
func TestHead(t *testing.T) {
	for _, addrs := range [][2]string{{"10.244.1.10:1", "192.0.2.1:2"}, {"[fd00::1]:1", "[2001:db8::1]:2"}} {
		for _, want := range []Head{{64, 0, true}, {1, 0xff, true}, {255, 0x03, true}} {
			ip := netstacktest.Spec{Src: netip.MustParseAddrPort(addrs[0]), Dst: netip.MustParseAddrPort(addrs[1]), Proto: packet.UDP}.IP()
			want.Put(ip)
			packet.PutLength(ip)
			var p packet.Packet
			if fault := p.ParseIP(ip); fault != packet.Good {
				t.Fatalf("%s: fault %d", addrs[0], fault)
			}
			if got := HeadOf(&p); got != want {
				t.Errorf("%s: %+v, want %+v", addrs[0], got, want)
			}
			packet.PutFields(ip, 0, 0)
			if got := HeadOf(&p); got.TTL != 1 {
				t.Errorf("%s: a TTL of 0 is sent on as %d", addrs[0], got.TTL)
			}
		}
	}
}
