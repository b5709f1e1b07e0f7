package keeper

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// nextSockets returns the Sockets of the next agent, and what ends it.
func nextSockets(t *testing.T, path string) (s *Sockets, others []Item, end func()) {
	t.Helper()
	h, err := Hold(t.Context(), path, "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	items, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	s, others = NewSockets(h, items, slog.New(slog.DiscardHandler))
	return s, others, h.Close
}

// TestSocketsAreDropped: an agent of an earlier version, which does not take over sockets, can open them itself.
func TestSocketsAreDropped(t *testing.T) {
	_, path := start(t, Options{})
	addr := fmt.Sprint("127.0.0.1:", freeport.Of(t))
	s, _, end := nextSockets(t, path)
	l, err := s.Listen(t.Context(), "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	end()
	if l, err := net.Listen("tcp4", addr); err == nil {
		_ = l.Close()
		t.Fatal("the keeper does not hold the socket")
	}
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	claim := func() error { _, _, err := c.call(t.Context(), request{Op: opClaim, Node: "n1"}); return err }
	await.Until(t, "the lease is free", func() bool { return claim() == nil })
	if l, err = net.Listen("tcp4", addr); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// TestSockets: what comes to a socket while there is no agent waits for the next one. A socket that is released, or
// that the next agent does not ask for, refuses.
func TestSockets(t *testing.T) {
	_, path := start(t, Options{})
	tcp, udp := fmt.Sprint("127.0.0.1:", freeport.Of(t)), fmt.Sprint("127.0.0.1:", freeport.Of(t))
	s, _, end := nextSockets(t, path)
	open := func() (net.Listener, net.PacketConn) {
		t.Helper()
		l, err := s.Listen(t.Context(), "tcp4", tcp)
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.ListenPacket(t.Context(), "udp4", udp)
		if err != nil {
			t.Fatal(err)
		}
		return l, c
	}
	closeAll := func(all ...io.Closer) {
		t.Helper()
		for _, c := range all {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	l, c := open()
	s.Release("tcp4", tcp)
	s.Release("udp4", udp)
	closeAll(l, c)
	untilFree(t, func() (io.Closer, error) { return s.Listen(t.Context(), "tcp4", tcp) })
	untilFree(t, func() (io.Closer, error) { return s.ListenPacket(t.Context(), "udp4", udp) })
	end()

	// Nobody is there.
	client, err := net.Dial("tcp4", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	asks, err := net.Dial("udp4", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer asks.Close()
	if _, err := asks.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}

	s, others, end := nextSockets(t, path)
	if len(others) != 0 {
		t.Errorf("others: %v", others)
	}
	l, c = open()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if conn.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("%v comes, want %v", conn.RemoteAddr(), client.LocalAddr())
	}
	_ = conn.Close()
	buf := make([]byte, 100)
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	if n, from, err := c.ReadFrom(buf); err != nil || string(buf[:n]) != "question" || from.String() != asks.LocalAddr().String() {
		t.Errorf("%q of %v, %v", buf[:n], from, err)
	}
	closeAll(l, c)
	end()

	s, _, end = nextSockets(t, path)
	defer end()
	s.Settle()
	await.Until(t, "a client of the socket that nobody asked for is refused", func() bool {
		c, err := net.Dial("tcp4", tcp)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	await.Until(t, "a datagram to the socket that nobody asked for is refused", func() bool {
		_, err := asks.Write([]byte("again"))
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// TestCoalescedDatagrams: a socket in which the kernel may put datagrams together has a key that agents which read one
// datagram at a time do not ask for. The socket of such an agent goes on, under the new key alone.
func TestCoalescedDatagrams(t *testing.T) {
	_, path := start(t, Options{})
	addr := fmt.Sprint("127.0.0.1:", freeport.Of(t))
	const old, now = "socket/udp4/", "socket/udp4+gro/"
	s, _, end := nextSockets(t, path)
	before, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.keep(old+addr, before.(filer)) // as the older agent did
	_ = before.Close()
	end()

	open := func() {
		t.Helper()
		untilFree(t, func() (io.Closer, error) { return s.ListenPacket(t.Context(), "udp4", addr) })
	}
	for _, agent := range []string{"first", "next"} {
		if s, _, end = nextSockets(t, path); agent == "next" && (s.there[now+addr] == nil || s.there[old+addr] != nil) {
			t.Errorf("the keeper has %v", s.there)
		}
		open()
		end()
	}
	s, _, end = nextSockets(t, path)
	s.Release("udp4", addr)
	open() // another one
	end()

	s, _, end = nextSockets(t, path)
	if len(s.there) != 1 || s.there[now+addr] == nil {
		t.Errorf("the keeper has %v", s.there)
	}
	s.Settle() // as an agent does that asks for the old key alone
	untilFree(t, func() (io.Closer, error) { return net.ListenPacket("udp4", addr) })
	end()
}

// untilFree listens and closes the socket again. A kernel frees a port a moment after the close: it may look for events
// of the socket just then, and holds it meanwhile (Linux 6.9, epi_fget).
func untilFree(t *testing.T, listen func() (io.Closer, error)) {
	t.Helper()
	await.Until(t, "the port is free", func() bool {
		c, err := listen()
		return err == nil && c.Close() == nil
	})
}
