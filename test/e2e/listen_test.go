package e2e

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/awake"
)

// tickEvery is the time between two bytes that the helper tick sends.
const tickEvery = 50 * time.Millisecond

// tick sends something to each who connects again and again, and reads nothing: ADDR.
func tick(ctx context.Context, args []string) error {
	return serveEach(ctx, args[0], func(c net.Conn) {
		defer c.Close()
		every := time.NewTicker(tickEvery)
		defer every.Stop()
		for {
			if _, err := c.Write([]byte(".")); err != nil {
				return // the client has gone, or this process ends
			}
			<-every.C
		}
	})
}

// heard is what the helper listen heard on one connection.
type heard struct {
	// Bytes counts all of it, and After what came after the input ended.
	Bytes, After int
	// WorstMillis is the longest time without any, while the machine let programs run.
	WorstMillis float64
	Error       string
}

// listen connects to servers, and says nothing afterwards: it only reads. When the input ends it waits until each
// connection has brought something once more. Args are the servers.
func listen(ctx context.Context, args []string) error {
	ended := untilInputEnds(ctx)
	out := map[string]heard{}
	var mu sync.Mutex
	var begun, done sync.WaitGroup
	begun.Add(len(args))
	for _, addr := range args {
		done.Go(func() {
			var h heard
			if err := h.listen(ctx, ended, addr, sync.OnceFunc(begun.Done)); err != nil {
				h.Error = err.Error()
			}
			mu.Lock()
			out[addr] = h
			mu.Unlock()
		})
	}
	begun.Wait()
	started()
	done.Wait()
	return print(out)
}

func (h *heard) listen(ctx, ended context.Context, addr string, begun func()) error {
	defer begun()
	// Keep-alive probes would be something that the pod says.
	c, err := (&net.Dialer{KeepAlive: -1, Timeout: patience}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ended, func() { _ = c.SetReadDeadline(time.Now().Add(patience)) })()
	clock := awake.Start()
	defer clock.Stop()
	last := clock.Now()
	for buf := make([]byte, 4096); h.After == 0; {
		over := ended.Err() != nil
		n, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", h.Bytes, err)
		}
		now := clock.Now()
		h.Bytes += n
		h.WorstMillis = max(h.WorstMillis, float64((now-last).Microseconds())/1000)
		if last = now; over {
			h.After += n
		}
		begun()
	}
	return nil
}

// heardOn ends the helper listen. Each connection must have gone on to the end.
func heardOn(t *testing.T, pod string, h *helper) {
	t.Helper()
	worst := 0.0
	for addr, on := range decode[map[string]heard](t, h.end(t)) {
		if worst = max(worst, on.WorstMillis); on.Error != "" {
			t.Errorf("%s, which only listens to %s: %s", pod, addr, on.Error)
		}
	}
	t.Logf("%s: who only listens heard nothing for %.0f ms at most", pod, worst)
}
