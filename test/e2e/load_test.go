package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/test/lab"
)

// loadServe runs the load generator's server until the input ends: ADDR.
func loadServe(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	server, err := load.Listen(ctx, args[0], "")
	if err != nil {
		return err
	}
	started()
	return server.Serve(ctx)
}

// measure runs a measurement of the load generator in a pod: "stream", "rr" or "crr".
func (c *cluster) measure(t *testing.T, where lab.Target, kind, addr string, o load.Options) load.Result {
	t.Helper()
	r, err := c.tryMeasure(t, where, kind, addr, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (c *cluster) tryMeasure(t *testing.T, where lab.Target, kind, addr string, o load.Options) (r load.Result, err error) {
	if o, err = o.Complete(); err != nil {
		return r, err
	}
	stdout, stderr, code, err := c.Output(c.ctx, where, append([]string{self(t), "bench", kind, addr, "--json"}, o.Args()...)...)
	if err != nil || code != 0 {
		return r, fmt.Errorf("%s to %s: exit status %d, %w: %s", kind, addr, code, err, stderr)
	}
	return decode[load.Result](t, stdout), nil
}

// A datagram of the tests has a number, and a hash over the number and the payload, so that damage is noticed.
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

// flooded is the result of a flood.
type flooded struct{ Sent uint64 }

// flood sends COUNT datagrams, or with 0 datagrams until the input ends, as UDP superframes at MBITS Mbit/s, or with 0
// without a limit: ADDR MBITS COUNT. It ignores send errors, since the far end may be dead.
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

// drained is what a sink received.
type drained struct{ Datagrams, Distinct, Broken uint64 }

// sink receives the datagrams of a flood until the input ends: ADDR. With another argument it only counts them.
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
	// Late datagrams of an earlier flood come from another port and are counted apart.
	type datagram struct {
		from   netip.AddrPort
		number uint64
	}
	seen := map[datagram]bool{}
	for b := make([]byte, 65535); ; {
		n, from, err := conn.(*net.UDPConn).ReadFromUDPAddrPort(b)
		if err != nil {
			out.Distinct = uint64(len(seen))
			return print(out)
		}
		if out.Datagrams++; len(args) > 1 {
			continue
		}
		if n != datagramLen || datagramSum(b[:n]) != [sha256.Size]byte(b[8:]) {
			out.Broken++
			continue
		}
		seen[datagram{from, binary.BigEndian.Uint64(b)}] = true
	}
}

// deaf opens a TCP and a UDP port, accepts connections, and never reads, until the input ends: ADDR.
func deaf(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	var lc net.ListenConfig
	u, err := lc.ListenPacket(ctx, "udp", args[0])
	if err != nil {
		return err
	}
	defer u.Close()
	l, err := lc.Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	started()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil // the input has ended
		}
		defer c.Close()
	}
}

// pushed is how much a far end that does not read let the sender write.
type pushed struct{ Bytes int64 }

// push writes to TCP connections as long as they take something, until the input ends: ADDR CONNECTIONS.
func push(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	done := make(chan int64)
	for range n {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", args[0])
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { c.Close() })
		go func() {
			written, _ := io.Copy(c, stream(1, 1<<40)) // until it is closed
			done <- written
		}()
	}
	started()
	var out pushed
	for range n {
		out.Bytes += <-done
	}
	return print(out)
}

// unplug takes an interface down: NAME.
func unplug(_ context.Context, args []string) error {
	link, err := netlink.LinkByName(args[0])
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetDown(link), print("down"))
}
