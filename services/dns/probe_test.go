package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

func TestProbe(t *testing.T) {
	dial := func(addr netip.AddrPort) net.Conn {
		c, err := net.Dial("udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	if err := Probe(ctx, dial(start(t, answering(Options{}))), ""); err != nil {
		t.Error(err)
	}
	notYet := start(t, New(Options{}))
	if err := Probe(ctx, dial(notYet), "cluster.local"); err == nil || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("a server without a Config: %v", err)
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	soon, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := Probe(soon, dial(netip.MustParseAddrPort(silent.LocalAddr().String())), ""); err == nil {
		t.Error("a server that does not answer is well")
	}
}
