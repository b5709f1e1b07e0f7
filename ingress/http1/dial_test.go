package http1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// gate is a Dial that waits for leave.
type gate struct {
	leave      chan error // what the next dial returns; nil: a connection to addr
	addr       string
	now, begun atomic.Int32
	most       atomic.Int32
}

func (g *gate) dial(ctx context.Context, _ string) (net.Conn, error) {
	g.begun.Add(1)
	n := g.now.Add(1)
	defer g.now.Add(-1)
	for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
	}
	select {
	case err := <-g.leave:
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, "tcp", g.addr)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// scripts returns n scripts of one request each.
func scripts(n int) (list [][]step) {
	for range n {
		list = append(list, []step{{until: "\r\n\r\n", answer: ok}})
	}
	return list
}

// Requests that are gone before they have a connection leave no more than a few dials behind, and their connections
// serve later requests.
func TestDialsOfRequestsThatAreGone(t *testing.T) {
	s := serve(t, scripts(maxDialsPerAddr)...)
	g := &gate{leave: make(chan error), addr: s.addr}
	c := client(t, Options{Dial: g.dial})
	var gone sync.WaitGroup
	for range 200 {
		gone.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began := g.begun.Load()
			asked := make(chan error, 1)
			go func() {
				_, err := c.Do(ctx, "h", get("h"))
				asked <- err
			}()
			await.Until(t, "a dial", func() bool { return g.begun.Load() > began || g.now.Load() == maxDialsPerAddr })
			cancel()
			if err := <-asked; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
	gone.Wait()
	if n := g.most.Load(); n > maxDialsPerAddr {
		t.Errorf("%d dials were under way, want %d at most", n, maxDialsPerAddr)
	}
	left := g.now.Load()
	for range left {
		g.leave <- nil
	}
	await.Until(t, "the connections are kept", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.kept == int(left) && c.dials == 0 })
	begun := g.begun.Load()
	do(t, c, "h", get("h"))
	if g.begun.Load() != begun {
		t.Error("a later request dialled, though connections are idle")
	}
}

// Connections go to the owners of waiting requests in turn.
func TestConnectionsInTurn(t *testing.T) {
	const greedy = 50
	s := serve(t, scripts(greedy+1)...)
	g := &gate{leave: make(chan error), addr: s.addr}
	c := client(t, Options{Dial: g.dial})
	done := make(chan string, greedy+1)
	ask := func(owner string) {
		r := get("h")
		r.Owner = netip.MustParsePrefix(owner)
		resp, err := c.Do(t.Context(), "h", r)
		if err != nil {
			t.Error(err)
			done <- ""
			return
		}
		resp.Body.Close() // without the end of the body, so that nobody else gets this connection
		done <- owner
	}
	waiting := func(n int) {
		await.Until(t, fmt.Sprint(n, " requests wait"), func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.origin("h").waiting.Len() == n })
	}
	for range greedy {
		go ask("192.0.2.1/32")
	}
	waiting(greedy)
	go ask("192.0.2.2/32")
	waiting(greedy + 1)
	for i := range 2 {
		g.leave <- nil
		if <-done == "192.0.2.2/32" {
			break
		}
		if i == 1 {
			t.Error("of two connections neither went to the owner with one request")
		}
	}
	close(g.leave)
	for range greedy - 1 {
		<-done
	}
}

// A dial that fails fails one request.
func TestDialFails(t *testing.T) {
	s := serve(t, scripts(4)...)
	g := &gate{leave: make(chan error), addr: s.addr}
	c := client(t, Options{Dial: g.dial})
	refused := errors.New("refused")
	got := make(chan error, 4)
	for range 4 {
		go func() {
			resp, err := c.Do(t.Context(), "h", get("h"))
			if err == nil {
				resp.Body.Close()
			}
			got <- err
		}()
	}
	await.Until(t, "all dial", func() bool { return g.now.Load() == 4 })
	for _, err := range []error{refused, nil, refused, nil} {
		g.leave <- err
		if e := <-got; !errors.Is(e, err) {
			t.Errorf("got %v, want %v", e, err)
		}
	}
}

// A request waits for its connection a moment longer than a dial may take. It is told what became of the dial.
func TestNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{leave: make(chan error)}
		c := New(Options{Dial: g.dial, DialTimeout: 3 * time.Second})
		var all sync.WaitGroup
		var told atomic.Int32
		for range 3 * maxDialsPerAddr {
			all.Go(func() {
				began := time.Now()
				_, err := c.Do(t.Context(), "h", get("h"))
				waits := time.Since(began)
				switch {
				case err == context.DeadlineExceeded && waits == 3*time.Second:
					told.Add(1)
				case err != ErrNoConnection || waits != 3*time.Second+dialGrace:
					t.Errorf("got %v after %v", err, waits)
				}
			})
		}
		all.Wait()
		if n := told.Load(); n != maxDialsPerAddr {
			t.Errorf("%d requests were told of a failed dial, want %d", n, maxDialsPerAddr)
		}
		time.Sleep(3 * time.Second) // for dials that were begun as the others ended
		synctest.Wait()
		if n := g.most.Load(); n != maxDialsPerAddr {
			t.Errorf("%d dials were under way, want %d", n, maxDialsPerAddr)
		}
		if len(c.origins) != 0 || c.dials != 0 {
			t.Errorf("%d dials and %d addresses are left", c.dials, len(c.origins))
		}
		c.Close()
		if _, err := c.Do(t.Context(), "h", get("h")); err == nil {
			t.Error("a closed client dials")
		}
	})
}
