package refusal

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

func TestKind(t *testing.T) {
	const none = packet.ICMPError(255)
	for _, c := range []struct {
		err  error
		want packet.ICMPError
	}{
		{unix.ECONNREFUSED, packet.PortUnreachable},
		{unix.ENOPROTOOPT, packet.PortUnreachable},
		{unix.ENETUNREACH, packet.NetUnreachable},
		{unix.EAFNOSUPPORT, packet.NetUnreachable},
		{unix.EADDRNOTAVAIL, packet.NetUnreachable},
		{unix.EHOSTUNREACH, packet.HostUnreachable},
		{unix.EACCES, packet.AdminProhibited},
		{os.NewSyscallError("connect", unix.EHOSTUNREACH), packet.HostUnreachable},
		{fmt.Errorf("open: %w", os.NewSyscallError("connect", unix.EACCES)), packet.AdminProhibited},
		{unix.ETIMEDOUT, none},
		{unix.EMFILE, none},
		{unix.EAGAIN, none},
		{unix.EINVAL, none}, // a black hole
		{net.ErrClosed, none},
		{errors.New("something else"), none},
	} {
		got, ok := Kind(c.err)
		if !ok {
			got = none
		}
		if got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// One address is allowed a burst and then the rate; others are not affected.
func TestLimit(t *testing.T) {
	now := time.Now()
	l := NewLimit(func() time.Time { return now }, 1)
	greedy := packet.AddrFrom(netip.MustParseAddr("10.244.1.10"))
	count := func(n int, a packet.Addr) (sent int) {
		for range n {
			if l.Allow(a) {
				sent++
			}
		}
		return sent
	}
	if n := count(1000, greedy); n != burst {
		t.Errorf("%d at once, want %d", n, burst)
	}
	sent := 0
	for range 1000 {
		now = now.Add(time.Millisecond)
		sent += count(10, greedy)
	}
	if want := int(time.Second / interval); sent != want {
		t.Errorf("%d in a second, want %d", sent, want)
	}
	others := 0
	for i := range byte(200) {
		others += count(1, packet.AddrFrom(netip.AddrFrom4([4]byte{10, 244, 2, i})))
	}
	if others < 195 { // a few share the bucket
		t.Errorf("%d of 200 others got theirs", others)
	}
	now = now.Add(time.Hour)
	if n := count(1000, greedy); n != burst {
		t.Errorf("%d after an hour, want %d", n, burst)
	}
	if n := testing.AllocsPerRun(100, func() { l.Allow(greedy) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
