package tcprelay

import (
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

// A silent pod is probed, and given up when it does not answer.
func TestPodLives(t *testing.T) {
	probes := 0
	r := New(Options{MTU: func() int { return 1420 }, Send: func([]byte, packet.VNetHdr) { probes++ }})
	c := newConn(r, packet.Tuple{Proto: packet.TCP}, open)
	c.to.mss, c.to.limit = 1380, 1380
	t.Cleanup(c.timer.stop)
	later := func() bool {
		r.start = r.start.Add(-look - time.Millisecond)
		return c.podLives(timeUp)
	}
	if !c.podLives(0) || !c.podLives(timeUp) || probes != 0 {
		t.Fatalf("asked %d times when it has just been opened", probes)
	}
	for range 3 {
		c.heard.Store(true)
		if !later() || probes != 0 {
			t.Fatalf("asked %d times though it says something", probes)
		}
	}
	for i := range lookMost {
		if !later() || probes != i+1 {
			t.Fatalf("asked %d times in %d times of silence", probes, i+1)
		}
	}
	c.heard.Store(true)
	if !later() {
		t.Fatal("given up though it has answered")
	}
	for range lookMost {
		if !later() {
			t.Fatal("given up too soon")
		}
	}
	if later() {
		t.Error("not given up")
	}
}
