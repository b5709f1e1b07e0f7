package dgram

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Datagrams leave from the address that was asked for, several of them with one call, and Local finds that address
// where they arrive.
func TestSend(t *testing.T) {
	const size = 100
	for _, host := range []string{"127.0.0.7", "::1"} {
		addr := netip.MustParseAddr(host)
		in, err := Open(UDP, addr.Is4())
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // the host does without that family
		} else if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(in)
		level, opt := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
		if addr.Is4() {
			level, opt = unix.IPPROTO_IP, unix.IP_PKTINFO
		}
		if err := unix.SetsockoptInt(in, level, opt, 1); err != nil {
			t.Fatal(err)
		}
		out, err := net.ListenPacket("udp", net.JoinHostPort(map[bool]string{true: "127.0.0.1", false: "::1"}[addr.Is4()], "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		far := out.LocalAddr().(*net.UDPAddr).AddrPort()
		to, data := AddrOf(packet.EndpointFrom(far)), make([]byte, 2*size+1)
		if n := testing.AllocsPerRun(1, func() {
			if errno := Send(in, &to, packet.AddrFrom(addr), data, size); errno != 0 {
				t.Errorf("%s: %v", host, errno)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", host, n)
		}
		b := make([]byte, 1000)
		for i, want := range []int{size, size, 1, size, size, 1} { // AllocsPerRun runs it once before
			n, from, err := out.ReadFrom(b)
			if err != nil || n != want || from.(*net.UDPAddr).AddrPort().Addr().Unmap() != addr {
				t.Fatalf("%s: datagram %d: %d bytes from %s, %v", host, i, n, from, err)
			}
			if _, err := out.WriteTo(b[:1], from); err != nil {
				t.Fatal(err)
			}
		}
		var msg unix.Msghdr
		var ctl Control
		ctl.For(&msg)
		iov := unix.Iovec{Base: &b[0]}
		iov.SetLen(len(b))
		msg.Iov = &iov
		msg.SetIovlen(1)
		if _, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(in), uintptr(unsafe.Pointer(&msg)), 0); errno != 0 {
			t.Fatalf("%s: %v", host, errno)
		}
		if got := ctl.Local(&msg); got != packet.AddrFrom(addr) {
			t.Errorf("what was sent to %s has the local address %s", addr, got)
		}
	}
}
