package stack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// A client's network that wants all connections of the stack leaves half of them to others, and the node's own
// connections are not counted.
func TestDialsAreShared(t *testing.T) {
	s, pod := wired(t)
	limit := func(n int) *share.Limit[packet.Addr, struct{}] {
		return share.New[packet.Addr, struct{}](share.Options[packet.Addr]{Total: n, Keep: true})
	}
	s.dials.all, s.dials.roomy = limit(8), limit(2)
	at := netip.AddrPortFrom(podAddr, 80)
	l, err := pod.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	dial := func(client string) (net.Conn, error) {
		var from netip.AddrPort
		if client != "" {
			from = netip.MustParseAddrPort(client)
		}
		c, err := s.Dial(ctx, "tcp", from, at)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}
	var greedy []net.Conn
	for {
		c, err := dial("203.0.113.7:0")
		if err != nil {
			if !errors.Is(err, ErrTooMany) {
				t.Fatal(err)
			}
			break
		}
		greedy = append(greedy, c)
	}
	if len(greedy) != 4 {
		t.Errorf("one network has %d of 8 connections, want half", len(greedy))
	}
	for _, client := range []string{"203.0.113.8:0", "203.0.113.9:4000", "", "", ""} {
		if _, err := dial(client); err != nil {
			t.Errorf("as %q: %v", client, err)
		}
	}
	if s := s.Stats().Dials; s.Held != 6 || s.Owners != 3 || s.Refused != 1 {
		t.Errorf("%+v", s)
	}
	_ = greedy[0].Close()
	_ = greedy[0].Close()
	// The network has three, and no more than three are free.
	if _, err := dial("203.0.113.7:0"); !errors.Is(err, ErrTooMany) {
		t.Errorf("%v", err)
	}
	if s := s.Stats().Dials; s.Held != 5 {
		t.Errorf("%+v", s)
	}
}

// What a pod sends and nobody reads stays with the pod, on a connection of the node itself too: what Ingress does not
// read because its client does not read must not fill this node's memory.
func TestUnreadStaysWithThePod(t *testing.T) {
	s, pod := wired(t)
	at := netip.AddrPortFrom(podAddr, 80)
	l, err := pod.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	most := 0
	for i := range roomyDials + 1 {
		c, err := s.Dial(ctx, "tcp", netip.AddrPort{}, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = far.Close() })
		_ = far.SetDeadline(netstacktest.Until(t))
		if size := int(c.(*conn).ep.SocketOptions().GetReceiveBufferSize()); size > most {
			most = size
		}
		if i < roomyDials {
			continue
		}
		go func() { _, _ = far.Write(make([]byte, 512<<10)) }()
		if _, err := io.CopyN(io.Discard, c, 512<<10); err != nil {
			t.Fatal(err)
		}
		if grown := int(c.(*conn).ep.SocketOptions().GetReceiveBufferSize()); grown > slimBuffer {
			t.Errorf("the buffer of connection %d grew to %d bytes", i, grown)
		}
	}
	if most > slimBuffer {
		t.Errorf("a connection begins with a buffer of %d bytes, want at most %d", most, slimBuffer)
	}
	if n := s.dials.own.Load(); n != roomyDials {
		t.Errorf("%d roomy connections, want %d", n, roomyDials)
	}
}
