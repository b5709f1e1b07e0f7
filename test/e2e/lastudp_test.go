package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	// datagramSize is the length of a datagram of last: its number, the time at which it was sent, bytes that depend on
	// seed and number, and a hash.
	datagramSize = 256
	datagramHead = 16
	datagramHash = 8
	// echoHead is the length of what echo puts before a datagram: who it is, and the address that it saw.
	echoHead = 8 + 18
	// echoWait is how long last waits for the last answers.
	echoWait = 2 * time.Second
	// oldEnough is how long a socket lives before it counts as begun: sockets for a question or two are not kept.
	oldEnough = 1500 * time.Millisecond
)

// echo answers each datagram with that, who it is, and the address that it saw, until the socket is closed.
func echo(c net.PacketConn) {
	in, out := make([]byte, 2*datagramSize), make([]byte, 0, 2*datagramSize+echoHead)
	for {
		n, from, err := c.ReadFrom(in)
		if err != nil {
			return
		}
		at := from.(*net.UDPAddr).AddrPort()
		a := at.Addr().As16()
		out = binary.BigEndian.AppendUint64(out[:0], uint64(os.Getpid()))
		out = append(append(out, a[:]...), byte(at.Port()>>8), byte(at.Port()))
		_, _ = c.WriteTo(append(out, in[:n]...), from)
	}
}

// datagram returns the datagram with that number, as sent at an instant.
func (k *kept) datagram(number uint64, at time.Duration) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, datagramSize), number)
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = b[:datagramSize-datagramHash]
	_, _ = io.ReadFull(stream(k.seed+number<<16, datagramSize), b[datagramHead:]) // has enough
	sum := sha256.Sum256(b)
	return append(b, sum[:datagramHash]...)
}

// datagrams keeps a UDP socket until ctx ends, and has each datagram answered. It calls begun when that has begun, or
// failed.
func (k *kept) datagrams(ctx context.Context, begun func()) (out lasted) {
	defer begun()
	out.Connections = 1
	c, err := dialFrom("udp", k.to, k.from, patience)
	if err != nil {
		out.Cut, out.Error = 1, err.Error()
		return out
	}
	defer c.Close()
	heard := make(chan lasted, 1)
	go func() { heard <- k.hearDatagrams(c, begun) }()
	sent := 0
	select {
	case <-time.After(rand.N(k.pause)): // hundreds do not speak in one instant
	case <-ctx.Done():
	}
	for tick := time.NewTicker(k.pause); ctx.Err() == nil; {
		if _, err := c.Write(k.datagram(uint64(sent), uptime())); err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			sent++
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(echoWait))
	got := <-heard
	got.Lost = sent - got.Sent // answered
	got.Sent = sent
	return out.with(got)
}

// hearDatagrams counts what is answered, as Sent, until the socket has a deadline that passes.
func (k *kept) hearDatagrams(c net.Conn, begun func()) (out lasted) {
	first, buf := []byte(nil), make([]byte, 2*datagramSize)
	born := time.Now()
	answered := map[uint64]bool{}
	for {
		n, err := c.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return out
		case errors.Is(err, syscall.ECONNREFUSED):
			out.Refused++
			continue
		case err != nil:
			out.Cut, out.Error = 1, err.Error()
			return out
		}
		if n != echoHead+datagramSize {
			out.Wrong++
			continue
		}
		got := buf[echoHead:n]
		number, at := binary.BigEndian.Uint64(got), time.Duration(binary.BigEndian.Uint64(got[8:]))
		if !bytes.Equal(got, k.datagram(number, at)) || answered[number] {
			out.Wrong++
			continue
		}
		answered[number] = true
		if who := buf[:echoHead]; first == nil {
			first = bytes.Clone(who)
		} else if !bytes.Equal(who, first) {
			out.Moved = 1
		}
		out.Sent++
		out.Bytes += datagramSize
		if k.counting.Load() {
			out.stall(k.past.since(at))
		}
		if time.Since(born) > oldEnough {
			begun()
		}
	}
}
