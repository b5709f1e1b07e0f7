package node

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

// One endpoint on the host takes no more connections than it leaves to others, and closed ones make room, whatever
// Ingress does with the connection.
func TestHostBackendsAreBounded(t *testing.T) {
	h := newHostBackends(4)
	var at [2]netip.AddrPort
	for i := range at {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at[i] = l.Addr().(*net.TCPAddr).AddrPort()
	}
	dial := func(i int) net.Conn {
		t.Helper()
		c, err := h.dial(t.Context(), "tcp", at[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	first := dial(0)
	dial(0)
	if _, err := h.dial(t.Context(), "tcp", at[0]); !errors.Is(err, errTooManyOnHost) {
		t.Errorf("a third connection to one endpoint: %v", err)
	}
	dial(1)
	first.Close()
	first.Close()
	if n := h.limit.Stats().Held; n != 2 {
		t.Errorf("%d connections are counted, want 2", n)
	}
	dial(0)
	// A dial that fails takes nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	if _, err := h.dial(t.Context(), "tcp", gone); err == nil || errors.Is(err, errTooManyOnHost) {
		t.Errorf("nobody listens, and the dial says %v", err)
	}
	if n := h.limit.Stats().Held; n != 3 {
		t.Errorf("%d connections are counted, want 3", n)
	}
}
