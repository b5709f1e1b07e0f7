package netstacktest_test

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
)

// Datagrams keep their bounds both ways, the largest there are and empty ones among others, however fast they follow
// one another: where the kernel or the relay keeps several together, none gets lost between them.
func TestEgressSizes(t *testing.T) {
	_, ns := egress(t, 0)
	for i, addr := range outsideAddrs {
		largest := [2]int{65535 - 20 - 8, 65535 - 8}[i] // RFC 768, RFC 791; RFC 8200 3
		out := listenOutside(t, addr)
		pod := dialOutside(t, ns, out)
		for _, c := range []*net.UDPConn{out, pod} {
			if err := c.SetReadBuffer(4 << 20); err != nil {
				t.Fatal(err)
			}
		}
		sizes := []int{100, 0, 100, 100, 0, 0, 1372, 1373, 0, 100, 99, 100, 1}
		for range 20 {
			client := pass(t, out, sizes, func(b []byte) error { _, err := pod.Write(b); return err })
			pass(t, pod, sizes, func(b []byte) error { _, err := out.WriteToUDPAddrPort(b, client); return err })
		}
		client := pass(t, out, []int{largest}, func(b []byte) error { _, err := pod.Write(b); return err })
		pass(t, pod, []int{largest}, func(b []byte) error { _, err := out.WriteToUDPAddrPort(b, client); return err })
		if _, err := pod.Write(make([]byte, largest+1)); err == nil {
			t.Errorf("%s: there are larger ones than %d bytes", addr, largest)
		}
	}
}

// pass sends datagrams of those sizes and sees them arrive at c. It gives the sender of the last.
func pass(t *testing.T, c *net.UDPConn, sizes []int, send func([]byte) error) (from netip.AddrPort) {
	t.Helper()
	for i, n := range sizes {
		if err := send(bytes.Repeat([]byte{byte(i)}, n)); err != nil {
			t.Fatalf("send %d bytes: %v", n, err)
		}
	}
	buf := make([]byte, 1<<16)
	for i, n := range sizes {
		k, sender, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:k], bytes.Repeat([]byte{byte(i)}, n)) {
			t.Fatalf("datagram %d has %d bytes, want %d, or others: %v", i, k, n, err)
		}
		from = sender
	}
	return from
}
