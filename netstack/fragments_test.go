package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/fragment"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// large is a datagram that its sender cuts into three fragments.
func large(src, dst string, id uint16) netstacktest.Spec {
	s := datagram(src, dst)
	s.MayFrag, s.ID = true, id
	s.Payload = []byte(strings.Repeat("0123456789abcdef", 94))
	return s
}

// pieces cuts a datagram into fragments of at most 600 bytes.
func pieces(t testing.TB, s netstacktest.Spec) (all [][]byte) {
	t.Helper()
	ip := s.IP()
	var p packet.Packet
	if p.ParseIP(ip) != packet.Good {
		t.Fatal("no packet")
	}
	if s.Src.Addr().Is4() {
		p.Fragment(600, make([]byte, 600), func(ip []byte) { all = append(all, bytes.Clone(ip)) })
		return all
	}
	return pieces6(ip, s.ID)
}

func pieces6(ip []byte, id uint16) (all [][]byte) {
	const size = 552
	data := ip[40:]
	for at := 0; at < len(data); at += size {
		end, more := min(at+size, len(data)), uint16(1)
		if end == len(data) {
			more = 0
		}
		f := append(bytes.Clone(ip[:40]), ip[6], 0, 0, 0, 0, 0, 0, 0)
		f[6] = 44
		binary.BigEndian.PutUint16(f[4:], uint16(8+end-at))
		binary.BigEndian.PutUint16(f[42:], uint16(at)|more)
		binary.BigEndian.PutUint32(f[44:], uint32(id))
		all = append(all, append(f, data[at:end]...))
	}
	return all
}

// fromIP is from for a packet of which there are only bytes.
func (w *world) fromIP(who string, ip []byte) {
	w.t.Helper()
	ip = bytes.Clone(ip)
	switch d := w.devices[who]; {
	case d != nil:
		frame := datagram("10.244.1.10:1", "10.244.1.11:1")
		if ip[0]>>4 == 6 {
			frame = datagram("[fd00:10:244:1::10]:1", "[fd00:10:244:1::11]:1")
		}
		d.Send(append(frame.Frame(w.macs[who], tap.RouterMAC)[:packet.HeadLen], ip...))
	case who == "node-2":
		w.path.FromLink(node2, [][]byte{ip})
	case who == "node-2 encap":
		w.path.FromLink(node2, [][]byte{encapsulateIP(ip, "10.244.2.1", "10.244.1.1")})
	default:
		w.t.Fatalf("nobody is called %s", who)
	}
}

// arrived waits for n packets anywhere, and returns them sorted, each with where it arrived.
func (w *world) arrived(n int) (got []string) {
	w.t.Helper()
	w.until(func() bool {
		for name, d := range w.devices {
			for len(d.Frames()) > 0 {
				got = append(got, fmt.Sprintf("%s: % x", name, (<-d.Frames())[packet.HeadLen:]))
			}
		}
		for len(w.link.Sent()) > 0 {
			s := <-w.link.Sent()
			got = append(got, fmt.Sprintf("link to %x, %v: % x", s.Peer, s.Via, s.Packets[0]))
		}
		return len(got) >= n
	})
	slices.Sort(got)
	return got
}

// TestFragmentsInAnyOrder: what arrives of a datagram in fragments does not depend on their order (RFC 4787 REQ-14).
func TestFragmentsInAnyOrder(t *testing.T) {
	for name, c := range map[string]struct {
		before     netstacktest.Spec // a datagram that begins the flow, if there is one
		beforeFrom string
		from       string
		large      netstacktest.Spec
	}{
		"between pods":                  {from: "a", large: large("10.244.1.10:1000", "10.244.1.11:53", 7)},
		"between pods, IPv6":            {from: "a", large: large("[fd00:10:244:1::10]:1000", "[fd00:10:244:1::11]:53", 7)},
		"to another node":               {from: "a", large: large("10.244.1.10:1000", "10.244.2.10:53", 7)},
		"to another node, IPv6":         {from: "a", large: large("[fd00:10:244:1::10]:1000", "[fd00:10:244:2::10]:53", 7)},
		"from another node":             {from: "node-2", large: large("10.244.2.10:1000", "10.244.1.11:53", 7)},
		"from another node, IPv6":       {from: "node-2", large: large("[fd00:10:244:2::10]:1000", "[fd00:10:244:1::11]:53", 7)},
		"to a Service":                  {from: "a", large: large("10.244.1.10:1000", "10.96.0.1:80", 7)},
		"to a Service, IPv6":            {from: "a", large: large("[fd00:10:244:1::10]:1000", "[fd00:10:96::1]:80", 7)},
		"to a Service on another node":  {from: "a", large: large("10.244.1.10:1000", "10.96.0.5:53", 7)},
		"to a hostPort of this node":    {from: "node-2", large: large("10.244.2.10:1000", "172.31.0.11:54323", 7)},
		"from a client of another node": {from: "node-2 encap", large: large("198.51.100.7:4000", "10.244.1.11:8080", 7)},
		"from the host":                 {from: "host", large: large("172.31.0.11:1000", "10.244.1.11:53", 7)},
		"an answer of a Service": {
			datagram("10.244.1.10:1000", "10.96.0.1:80"), "a", "b", large("10.244.1.11:8080", "10.244.1.10:1000", 7),
		},
		"an answer of a Service on another node": {
			datagram("10.244.1.10:1000", "10.96.0.5:53"), "a", "node-2", large("10.244.2.10:5353", "10.244.1.10:1000", 7),
		},
		"an answer to a client of another node": {
			datagram("198.51.100.7:4000", "10.244.1.11:8080"), "node-2 encap", "b", large("10.244.1.11:8080", "198.51.100.7:4000", 7),
		},
	} {
		t.Run(name, func(t *testing.T) {
			all := pieces(t, c.large)
			run := func(order [3]int) []string {
				w := newStillWorld(t)
				if c.beforeFrom != "" {
					w.from(c.beforeFrom, c.before)
					w.arrived(1)
				}
				for _, i := range order {
					w.fromIP(c.from, all[i])
				}
				got := w.arrived(3)
				if s := w.path.Stats(); s.Verdicts[Dropped.String()]+s.Verdicts[Answered.String()] > 0 {
					t.Errorf("order %v: %v", order, s)
				}
				w.silent()
				return got
			}
			want := run([3]int{0, 1, 2})
			for _, order := range [][3]int{{0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
				if got := run(order); !slices.Equal(got, want) {
					t.Errorf("order %v:\n%s\nwant\n%s", order, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		})
	}
}

// TestFragmentsForTheNodeInAnyOrder: what ends in the stack, or goes on over a host socket, is put together there.
func TestFragmentsForTheNodeInAnyOrder(t *testing.T) {
	for name, to := range map[string]string{"the stack": "10.96.0.10:53", "outside": "198.51.100.7:53"} {
		t.Run(name, func(t *testing.T) {
			w := newStillWorld(t)
			all := pieces(t, large("10.244.1.10:1000", to, 7))
			for _, i := range []int{2, 1, 0} {
				w.fromIP("a", all[i])
			}
			w.until(func() bool { return w.path.Stats().Verdicts[ToStack.String()] == 3 })
		})
	}
}

// TestFragmentsWithOptionsInAnyOrder: options for the destination may stand behind the fragment header, which then
// names them and not UDP (RFC 8200 4.1).
func TestFragmentsWithOptionsInAnyOrder(t *testing.T) {
	for to, want := range map[string]Verdict{
		"[fd00:10:244:1::11]:53": ToTAP, "[fd00:10:96::1]:80": ToTAP, "[fd00:10:244:1::1]:53": ToStack, "[2001:db8::7]:53": ToStack,
	} {
		plain := large("[fd00:10:244:1::10]:1000", to, 7).IP()
		whole := slices.Concat(plain[:40], []byte{byte(packet.UDP), 0, 1, 4, 0, 0, 0, 0}, plain[40:])
		whole[6] = 60
		all := pieces6(whole, 7)
		for _, order := range [][3]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
			w := newStillWorld(t)
			for _, i := range order {
				w.fromIP("a", all[i])
			}
			w.until(func() bool { return w.path.Stats().Verdicts[want.String()] >= 3 })
		}
	}
}

// newStillWorld is a world in which no fragment has waited for too long, however long a test takes.
func newStillWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	now := time.Unix(1000, 0)
	w.path.fragments = fragment.New(fragment.Options{Max: maxFragmented, MaxWaiting: maxWaiting, Now: func() time.Time { return now }})
	return w
}

// TestFragmentsWithoutFirst: fragments whose first does not come reach nobody, and are lost in the end. So are those of
// a datagram whose first is refused.
func TestFragmentsWithoutFirst(t *testing.T) {
	now := time.Unix(1000, 0)
	w := newWorld(t)
	w.path.fragments = fragment.New(fragment.Options{Max: 10, MaxWaiting: 10, Now: func() time.Time { return now }})
	orphans := pieces(t, large("10.244.2.10:1000", "10.244.1.11:53", 7))[1:]
	refused := pieces(t, large("10.244.1.10:1000", "10.96.0.3:80", 8))
	for _, i := range []int{1, 0, 2} {
		w.fromIP("a", refused[i])
	}
	w.expect("a", "icmp 3/3 10.96.0.3 > 10.244.1.10 about 10.244.1.10:1000 > 10.96.0.3:80")
	for _, ip := range orphans {
		w.fromIP("node-2", ip)
	}
	w.until(func() bool { return w.path.Stats().Verdicts[Held.String()] == 4 })
	w.silent()
	if s := w.path.Stats(); s.Verdicts[Held.String()] != 4 || s.Verdicts[Answered.String()] != 1 || s.Verdicts[Dropped.String()] != 0 {
		t.Errorf("%v, want 4 held", s)
	}
	now = now.Add(time.Minute)
	w.hasDropped(LostFragment, 4)
	w.fromIP("node-2", pieces(t, large("10.244.2.10:1000", "10.244.1.11:53", 7))[0])
	if got := w.arrived(1); !strings.HasPrefix(got[0], "b: ") {
		t.Errorf("arrived: %s", got)
	}
	w.silent()
}

// TestFragmentsOfAnotherSender: nobody's first fragment sends another's fragments on their way, whatever it claims.
func TestFragmentsOfAnotherSender(t *testing.T) {
	w := newStillWorld(t)
	all := pieces(t, large("10.244.1.10:1000", "10.244.1.11:53", 7))
	w.fromIP("a", all[1])
	w.until(func() bool { return w.path.Stats().Verdicts[Held.String()] == 1 })
	w.fromIP("node-2", all[0])
	w.fromIP("b", all[0])
	w.dropped(Spoofed)
	w.dropped(SpoofedPeer)
	w.silent()
	w.fromIP("a", all[0])
	if got := w.arrived(2); !strings.HasPrefix(got[0], "b: ") || !strings.HasPrefix(got[1], "b: ") {
		t.Errorf("arrived: %s", got)
	}
}

// TestFragmentsWithoutFirstOfOnePod: endless fragments of one pod without a first, and of another node, cost another
// pod nothing of its reversed datagrams. What waits is bounded.
func TestFragmentsWithoutFirstOfOnePod(t *testing.T) {
	for _, greedy := range []struct{ who, addr string }{{"b", "10.244.1.11"}, {"node-2", "10.244.2.10"}} {
		w := newStillWorld(t)
		mine := pieces(t, large("10.244.1.10:1000", "10.96.0.5:53", 7))
		w.fromIP("a", mine[2])
		w.until(func() bool { return w.path.Stats().Verdicts[Held.String()] == 1 })
		const count = 5000
		for id := range count {
			w.fromIP(greedy.who, pieces(t, large(greedy.addr+":1000", "10.244.1.10:53", uint16(id)))[1])
		}
		w.until(func() bool { return w.path.Stats().Verdicts[Held.String()] == count+1 })
		w.hasDropped(LostFragment, count+1-maxWaiting)
		w.fromIP("a", mine[1])
		w.fromIP("a", mine[0])
		for _, got := range w.arrived(3) {
			if !strings.HasPrefix(got, "link") {
				t.Errorf("arrived: %s", got)
			}
		}
		w.silent()
	}
}

func TestReversedFragmentsAllocateNothing(t *testing.T) {
	w, b := hotNode(t)
	var frames [][]byte
	for _, ip := range pieces(t, large("10.244.1.10:1000", "10.244.1.11:53", 7)) {
		frame := datagram("10.244.1.10:1", "10.244.1.11:1").Frame(w.from.MAC, tap.RouterMAC)[:packet.HeadLen]
		frames = append([][]byte{append(frame, ip...)}, frames...)
	}
	buf, id := make([]byte, packet.MaxFrame), uint16(0)
	send := func() {
		id++
		for _, frame := range frames {
			n := copy(buf[:cap(buf)], frame)
			ip := buf[packet.HeadLen:n]
			binary.BigEndian.PutUint16(ip[4:], id)
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
			buf = w.fromTAP(buf[:n])
		}
	}
	for range maxFragmented + 1 {
		send()
	}
	before := b.frames
	if n := testing.AllocsPerRun(200, send); n != 0 {
		t.Errorf("%v allocations per datagram", n)
	}
	if got := b.frames - before; got != 3*201 {
		t.Errorf("%d fragments arrived, want %d; %v", got, 3*201, w.path.Stats())
	}
}
