package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A datagram of the tests: a number, and a hash over it and what follows, so that what arrives is known to be whole.
const (
	datagramLen    = 1200
	datagramHeader = 8 + sha256.Size
)

func putDatagram(b []byte, n uint64) {
	binary.BigEndian.PutUint64(b, n)
	for i := range b[datagramHeader:] {
		b[datagramHeader+i] = byte(n) + byte(i)
	}
	sum := datagramSum(b)
	copy(b[8:], sum[:])
}

func datagramSum(b []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(b[:8])
	h.Write(b[datagramHeader:])
	return [sha256.Size]byte(h.Sum(nil))
}

// flooded is what a flood came to.
type flooded struct{ Sent uint64 }

// flood sends so many datagrams as UDP superframes, or with 0 until the input ends, at so many Mbit/s, or with 0 without a
// limit: ADDR MBITS COUNT. What cannot be sent is not a failure: the far end may be dead.
func flood(ctx context.Context, args []string) error {
	rate, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return err
	}
	count, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	if count == 0 {
		ctx = untilInputEnds(ctx)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, datagramLen) })
	if err = errors.Join(err, serr); err != nil {
		return err
	}
	started()
	var out flooded
	const segments = 40
	block := make([]byte, segments*datagramLen)
	for begun := time.Now(); ctx.Err() == nil && (count == 0 || out.Sent < count); {
		for i := range segments {
			putDatagram(block[i*datagramLen:][:datagramLen], out.Sent+uint64(i))
		}
		if _, err := conn.Write(block); err == nil {
			out.Sent += segments
		}
		if rate > 0 {
			due := time.Duration(float64(out.Sent*datagramLen*8) / rate * 1000)
			select {
			case <-time.After(due - time.Since(begun)):
			case <-ctx.Done():
			}
		}
	}
	return print(out)
}

// drained is what a sink got.
type drained struct{ Datagrams, Distinct, Broken uint64 }

// sink takes the datagrams of a flood until the input ends: ADDR.
func sink(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", args[0])
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	_ = conn.(*net.UDPConn).SetReadBuffer(8 << 20) // as much as the machine allows
	started()
	var out drained
	seen := map[uint64]bool{}
	for b := make([]byte, 65535); ; {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			out.Distinct = uint64(len(seen))
			return print(out)
		}
		out.Datagrams++
		if n != datagramLen || datagramSum(b[:n]) != [sha256.Size]byte(b[8:]) {
			out.Broken++
			continue
		}
		seen[binary.BigEndian.Uint64(b)] = true
	}
}
