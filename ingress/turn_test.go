package ingress

import (
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
)

// TestReadersTakeTurns: what a client sent is looked at when it is that client's turn, over HTTP/1.1 and HTTP/2. Others
// go on meanwhile. In HTTP/2 each request has a turn of its own.
func TestReadersTakeTurns(t *testing.T) {
	greedy := netip.MustParsePrefix("192.0.2.1/32")
	s := New(Options{Endpoints: endpointsIn})
	var turns atomic.Int32 // of the other client
	gate := make(chan struct{})
	s.guests.turn = func(owner netip.Prefix) {
		if owner == greedy {
			<-gate
			return
		}
		turns.Add(1)
	}
	var begun atomic.Int32
	if err := s.Set(anyRoute(backend(t, func(http.ResponseWriter, *http.Request) { begun.Add(1) }))); err != nil {
		t.Fatal(err)
	}
	l := make(pipes)
	served := make(chan error, 1)
	go func() { served <- s.ServeHTTP(t.Context(), l) }()
	defer func() { close(l); s.server.Close(); <-served }()

	first := newWire(l.dial("192.0.2.1"))
	done := make(chan bool, 1)
	go func() { done <- first.works() }()
	if !newWire(l.dial("192.0.2.2")).works() {
		t.Error("another client is not served")
	}
	if n := turns.Load(); n == 0 {
		t.Error("the other client was served without a turn")
	}
	before := turns.Load()
	h := newH2(t, l.dial("192.0.2.2"))
	for range 3 {
		if a := h.get("/"); a.status != "200" {
			t.Errorf("another client's request in HTTP/2 got %+v", a)
		}
	}
	// Each request is read, and then begun.
	if n := turns.Load() - before; n < 6 {
		t.Errorf("three requests in HTTP/2 had %d turns", n)
	}
	if n := begun.Load(); n != 4 {
		t.Errorf("%d requests were begun, want the other client's 4", n)
	}
	close(gate)
	if !<-done || begun.Load() != 5 {
		t.Errorf("the request that waited for its turn was not served; %d were begun", begun.Load())
	}
}
