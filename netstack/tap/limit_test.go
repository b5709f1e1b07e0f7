package tap_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/tap"
)

// Packets of a pod arrive no faster than its limit allows.
func TestLimit(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	if bits, err := tap.Limited(ns, "eth0"); bits != 0 || err != nil {
		t.Fatalf("%d, %v", bits, err)
	}
	const bits = 8 << 20
	for _, r := range []tap.Rate{{Bits: 4 << 20}, {Bits: bits, Burst: 1 << 40}} {
		if err := tap.Limit(ns, "eth0", r); err != nil {
			t.Fatal(err)
		}
		if got, err := tap.Limited(ns, "eth0"); got != r.Bits || err != nil {
			t.Errorf("%d, %v; want %d", got, err, r.Bits)
		}
	}
	if err := tap.Limit(ns, "eth0", tap.Rate{Bits: 7}); err == nil {
		t.Error("7 bits per second were accepted")
	}
	d := newDevice(t, f, tap.Options{})
	var got int
	arrived := make(chan int, 1)
	const enough = 3 << 20 // bytes: a second's worth at once, and two seconds' after
	go d.Run(func(b []byte) []byte {
		if was := got; was < enough {
			if got += len(b); got >= enough {
				arrived <- got
			}
		}
		return b
	}, nil)
	c := listenUDP(t, ns, podA[0])
	start, payload := time.Now(), make([]byte, 1300)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.WriteToUDPAddrPort(payload, netip.AddrPortFrom(podB[0], 9)); err != nil && err != unix.ENOBUFS {
				// The socket's buffer is full, or the bucket drops.
				time.Sleep(time.Millisecond)
			}
		}
	}()
	<-arrived
	took := time.Since(start)
	close(stop)
	<-done
	if took < 1700*time.Millisecond {
		t.Errorf("%d bytes came within %s", enough, took)
	}
}
