package overlay

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) {
	if args := os.Getenv("OVERLAY_FLOOD"); args != "" {
		if err := floodMain(args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// node is one Mesh, and the packets that it received.
type node struct {
	*Mesh
	t    testing.TB
	id   uint64
	key  PrivateKey
	sock *os.File

	mu  sync.Mutex
	got map[uint64][][]byte // by peer
}

// podCIDRs returns the pod ranges of node n: 10.1.n.0/24 and fd00:n::/64. Its own address is 192.0.2.n.
func podCIDRs(n int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: byte(n)}), 64),
	}
}

func stackAddrs(n int) []netip.Addr {
	c := podCIDRs(n)
	return []netip.Addr{c[0].Addr().Next(), c[1].Addr().Next()}
}

func pod4(n, host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(n), byte(host)}) }

func pod6(n, host int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: byte(n), 15: byte(host)})
}

func startNode(t testing.TB, n int, change func(*Options)) *node {
	t.Helper()
	d := &node{t: t, id: uint64(n), key: NewPrivateKey(), got: make(map[uint64][][]byte)}
	d.start(n, change)
	t.Cleanup(func() { d.Close() })
	return d
}

func (d *node) start(n int, change func(*Options)) {
	d.t.Helper()
	o := Options{
		PrivateKey: d.key, StackAddrs: stackAddrs(n), Receive: d.receive, Socket: d.sock,
		Logger: slog.New(slog.NewTextHandler(d.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if change != nil {
		change(&o)
	}
	m, err := New(o)
	if err != nil {
		d.t.Fatal(err)
	}
	d.Mesh = m
}

func (d *node) receive(peer uint64, packets [][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range packets {
		d.got[peer] = append(d.got[peer], append([]byte(nil), p...))
	}
}

func (d *node) received(peer uint64) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.got[peer]
}

func (d *node) forget() {
	d.mu.Lock()
	clear(d.got)
	d.mu.Unlock()
}

// as returns d as the Peer of other nodes, with the endpoint ep.
func (d *node) as(ep netip.AddrPort) Peer {
	n := int(d.id)
	return Peer{
		ID: d.id, Name: string(rune('a' - 1 + n)), PublicKey: d.key.Public(), Endpoint: ep,
		Prefixes:   append(podCIDRs(n), netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 32)),
		StackAddrs: stackAddrs(n), Tapestry: true,
	}
}

func (d *node) loopback() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), d.Port())
}

func (d *node) loopback6() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv6Loopback(), d.Port())
}

func (d *node) set(peers ...Peer) {
	d.t.Helper()
	if err := d.Set(Config{Peers: peers}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *node) awaitSession(peer uint64) {
	d.t.Helper()
	await.Until(d.t, "session", func() bool { return d.table.Load().byID[peer].confirmed.Load() != 0 })
}

// frame makes a superframe as it is read from a TAP, and parses it. It has n bytes of payload, with GSO when these are
// more than mss.
func frame(t testing.TB, proto packet.Proto, src, dst netip.Addr, n, mss int) *packet.Packet {
	t.Helper()
	be := binary.BigEndian
	head, l4 := 40, 20
	if src.Is4() {
		head = 20
	}
	if proto == packet.UDP {
		l4 = 8
	}
	buf := make([]byte, packet.HeadLen+head+l4+n, packet.MaxFrame)
	ip := buf[packet.HeadLen:]
	if src.Is4() {
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, byte(proto)
		be.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		be.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
		be.PutUint16(buf[packet.VNetHdrLen+12:], packet.EtherIPv4)
	} else {
		ip[0], ip[6], ip[7] = 0x60, byte(proto), 64
		be.PutUint16(ip[4:], uint16(len(ip)-40))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
		be.PutUint16(buf[packet.VNetHdrLen+12:], packet.EtherIPv6)
	}
	h := ip[head:]
	be.PutUint16(h, 4000)
	be.PutUint16(h[2:], 5000)
	for i := range h[l4:] {
		h[l4+i] = byte(i * 7 >> 3)
	}
	vnet := packet.VNetHdr{Flags: packet.NeedsCsum, CsumStart: uint16(packet.EthLen + head), CsumOffset: 16}
	if proto == packet.UDP {
		be.PutUint16(h[4:], uint16(len(h)))
		vnet.CsumOffset = 6
	} else {
		be.PutUint32(h[4:], 1000)
		h[12], h[13] = 5<<4, packet.ACK
	}
	if n > mss {
		vnet.HdrLen, vnet.GSOSize = uint16(packet.EthLen+head+l4), uint16(mss)
		switch {
		case proto == packet.UDP:
			vnet.GSOType = packet.GSOUDPL4
		case src.Is4():
			vnet.GSOType = packet.GSOTCPv4
		default:
			vnet.GSOType = packet.GSOTCPv6
		}
	}
	vnet.Encode(buf)
	be.PutUint16(h[vnet.CsumOffset:], pseudo(ip, head, proto))
	p := new(packet.Packet)
	if f := p.ParseFrame(buf); f != packet.Good {
		t.Fatalf("bad frame: fault %d", f)
	}
	return p
}

// pseudo sums the pseudo header. A packet with a partial checksum has this sum in its checksum field.
func pseudo(ip []byte, head int, proto packet.Proto) uint16 {
	seed := uint32(proto) + uint32(len(ip)-head)
	if head == 20 {
		return packet.Checksum(ip[12:20], seed)
	}
	return packet.Checksum(ip[8:40], seed)
}

// complete checks the partial checksum of a packet and makes it a full one, as the receiving kernel does.
func complete(t testing.TB, ip []byte) {
	t.Helper()
	head, proto, at := 40, packet.Proto(ip[6]), 16
	if ip[0]>>4 == 4 {
		head, proto = 20, packet.Proto(ip[9])
	}
	if proto == packet.UDP {
		at = 6
	}
	field := ip[head+at:]
	if got, want := binary.BigEndian.Uint16(field), pseudo(ip, head, proto); got != want {
		t.Errorf("a packet of %d bytes has the partial checksum %#x, want %#x", len(ip), got, want)
	}
	binary.BigEndian.PutUint16(field, ^packet.Checksum(ip[head:], 0))
}

// payloads checks every packet's checksums and returns their payloads joined.
func payloads(t testing.TB, packets [][]byte) []byte {
	t.Helper()
	var all []byte
	for _, ip := range packets {
		head, proto := 40, packet.Proto(ip[6])
		if ip[0]>>4 == 4 {
			head, proto = 20, packet.Proto(ip[9])
			if packet.Checksum(ip[:20], 0) != 0xffff {
				t.Error("wrong IPv4 header checksum")
			}
		}
		if packet.Checksum(ip[head:], uint32(pseudo(ip, head, proto))) != 0xffff {
			t.Errorf("wrong L4 checksum in a packet of %d bytes", len(ip))
		}
		l4 := 8
		if proto == packet.TCP {
			l4 = 20
		}
		all = append(all, ip[head+l4:]...)
	}
	return all
}
