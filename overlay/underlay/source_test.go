package underlay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/await"
)

// socket4 returns a socket as OpenSocket makes it on a host without IPv6.
func socket4(t *testing.T) *os.File {
	t.Helper()
	fd, err := open4(0)
	if err != nil {
		t.Fatal(err)
	}
	tune(fd)
	f := os.NewFile(uintptr(fd), "udp4")
	t.Cleanup(func() { f.Close() })
	return f
}

// stranger returns a socket that accepts datagrams from one address only.
func stranger(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(await.Patience))
	return c
}

// An answer leaves from the address that was written to, alone and in bundles, from a socket for IPv4 or for both
// families.
func TestAnswersFromWhereItWasAsked(t *testing.T) {
	for name, o := range map[string]Options{"both families": {}, "IPv4": {Socket: socket4(t)}} {
		for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.5.5.5", "::1"} {
			at := netip.MustParseAddr(host)
			if at.Is6() && o.Socket != nil {
				continue
			}
			t.Run(name+" "+host, func(t *testing.T) {
				b := open(t, o)
				c := stranger(t, netip.AddrPortFrom(at, b.Port()))
				if _, err := c.Write([]byte("who are you?")); err != nil {
					t.Fatal(err)
				}
				g := <-b.in
				local := b.local(t, g.from, at)
				want := datagrams(100, 1200, 1200, 1200, 300, 1)
				if err := b.Send(want, local); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 2000)
				for i, w := range want {
					n, err := c.Read(buf)
					if err != nil || !bytes.Equal(buf[:n], w) {
						t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
					}
				}
			})
		}
	}
}

// local returns the endpoint that the Bind made for datagrams from ap to at.
func (d opened) local(t *testing.T, ap netip.AddrPort, at netip.Addr) *endpoint {
	t.Helper()
	d.epMu.Lock()
	defer d.epMu.Unlock()
	e := d.endpoints[way{ap, at}]
	if e == nil {
		t.Fatalf("nothing came from %s to %s", ap, at)
	}
	return e
}

// When the host no longer has the address that was written to, answers leave from another one and none is lost. When
// the host has the address again, answers leave from it again.
func TestSourceIsGone(t *testing.T) {
	for _, o := range []Options{{}, {NoGSO: true}, {Socket: socket4(t)}} {
		for _, hosts := range [][2]string{{"127.0.0.1", "192.0.2.77"}, {"::1", "2001:db8::77"}} {
			far, near := netip.MustParseAddr(hosts[0]), netip.MustParseAddr(hosts[1])
			if far.Is6() && o.Socket != nil {
				continue
			}
			t.Run(fmt.Sprint(hosts[0], o.NoGSO, o.Socket != nil), func(t *testing.T) {
				a, b := open(t, Options{}), open(t, o)
				to := b.endpointAt(netip.AddrPortFrom(far, a.Port()), near)
				for range 2 {
					want := datagrams(100, 1200, 1200, 1200, 300)
					if err := b.Send(want, to); err != nil {
						t.Fatal(err)
					}
					for i, w := range want {
						select {
						case g := <-a.in:
							if !bytes.Equal(g.data, w) {
								t.Fatalf("datagram %d has %d bytes, want %d", i, len(g.data), len(w))
							}
						case <-time.After(await.Patience):
							t.Fatalf("datagram %d is missing", i)
						}
					}
				}
				if n := b.Counters().Failed; n != 0 || !to.source.gone.Load() {
					t.Errorf("%d failed; the address is known to be gone: %v", n, to.source.gone.Load())
				}
				if b.endpointAt(netip.AddrPortFrom(far, a.Port()), near); to.source.gone.Load() {
					t.Error("a datagram that came to the address does not bring it back")
				}
			})
		}
	}
}

func TestArrived(t *testing.T) {
	to4 := func(to string) []byte {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 1, Spec_dst: [4]byte{192, 0, 2, 1}, Addr: netip.MustParseAddr(to).As4()})
	}
	to6 := func(to string) []byte {
		return unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 1, Addr: netip.MustParseAddr(to).As16()})
	}
	gro := make([]byte, 24)
	putGRO(gro, 1200)
	for _, c := range []struct {
		name  string
		ctl   []byte
		size  int
		local string
	}{
		{"nothing", nil, 0, "invalid IP"},
		{"IPv4", to4("192.0.2.1"), 0, "192.0.2.1"},
		{"a broadcast", to4("192.0.2.255"), 0, "192.0.2.1"},
		{"IPv6", to6("2001:db8::1"), 0, "2001:db8::1"},
		{"IPv4 on a socket for both", to6("::ffff:192.0.2.1"), 0, "192.0.2.1"},
		{"multicast", to6("ff02::1"), 0, "invalid IP"},
		{"coalesced", append(bytes.Clone(gro), to4("192.0.2.1")...), 1200, "192.0.2.1"},
		{"cut off", append(bytes.Clone(gro), to4("192.0.2.1")[:20]...), 1200, "invalid IP"},
	} {
		if size, local := arrived(c.ctl); size != c.size || local.String() != c.local {
			t.Errorf("%s: %d and %s, want %d and %s", c.name, size, local, c.size, c.local)
		}
	}
}
