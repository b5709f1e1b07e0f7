package ask

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/localapi"
)

// What is new is fetched, be it another plan or another address of the node, and once.
func TestFetches(t *testing.T) {
	var state atomic.Pointer[announce.State]
	state.Store(&announce.State{})
	s := &localapi.Server{
		Options: localapi.Options{Log: slog.New(slog.DiscardHandler)},
		Tables:  []localapi.Source{localapi.RouteState.From(func(context.Context) ([]announce.State, error) { return []announce.State{*state.Load()}, nil })},
	}
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := localapi.Listen(socket, s.Options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()

	var have *announce.State
	fetched, fail := 0, error(nil)
	loop := &Loop{State: localapi.RouteState, Client: &localapi.Client{Path: socket}, Fetch: func(_ context.Context, got announce.State) error {
		fetched++
		if want := *state.Load(); got.Generation != want.Generation || !slices.Equal(got.NodeAddrs, want.NodeAddrs) {
			t.Errorf("it fetches for %+v, want %+v", got, want)
		}
		return fail
	}}
	asked := func(want int) {
		t.Helper()
		fetched = 0
		now, err := loop.ask(t.Context(), have)
		if !errors.Is(err, fail) {
			t.Fatal(err)
		}
		if err == nil {
			have = now
		}
		if fetched != want {
			t.Errorf("it fetches %d times, want %d", fetched, want)
		}
	}
	asked(1)
	asked(0)
	state.Store(&announce.State{Generation: 1})
	asked(1)
	asked(0)
	state.Store(&announce.State{Generation: 1, NodeAddrs: []netip.Addr{netip.MustParseAddr("fd00:31::12")}})
	asked(1)
	asked(0)
	state.Store(&announce.State{Generation: 1})
	fail = errors.New("the agent has just ended")
	asked(1)
	fail = nil
	asked(1)
	asked(0)
}
