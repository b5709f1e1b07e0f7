package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// startKeeper runs a keeper until the returned function is called.
func startKeeper(t *testing.T, path string) (*Keeper, func()) {
	t.Helper()
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	k := New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Serve(ctx, ln, Options{}) }()
	return k, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		k.Close()
	}
}

func text(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestKeeperReplaced ends a keeper and starts another, which gets from the agent what the first one held, with the
// changes since.
func TestKeeperReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	first, stop := startKeeper(t, path)
	if err := first.Put("host", []byte(`{"mtu":1420}`), text(t, "of the init step")); err != nil {
		t.Fatal(err)
	}
	h, err := Hold(t.Context(), path, "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	items, err := h.List()
	if err != nil || len(items) != 1 {
		t.Fatalf("%v, %v", items, err)
	}
	items[0].File.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { h.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	for _, key := range []string{"pod/a", "pod/b"} {
		if err := h.Put(key, nil, text(t, key)); err != nil {
			t.Fatal(err)
		}
	}

	for range 2 {
		stop()
		if err := h.Put("pod/late", nil, text(t, "late")); err == nil {
			t.Error("put without a keeper that has it")
		}
		if err := h.Delete("pod/b"); err != nil {
			t.Errorf("delete without a keeper: %v", err)
		}
		var next *Keeper
		next, stop = startKeeper(t, path)
		for {
			if it, err := next.Get("pod/a"); err == nil {
				it.File.Close()
				if it, err = next.Get("host"); err == nil {
					b, _ := io.ReadAll(io.NewSectionReader(it.File, 0, 100))
					if string(b) != "of the init step" || string(it.Meta) != `{"mtu":1420}` {
						t.Errorf("%q, %s", b, it.Meta)
					}
					it.File.Close()
					break
				}
			}
			select {
			case <-t.Context().Done():
				t.Fatal("nothing was given back")
			case <-time.After(time.Millisecond):
			}
		}
		// Once a put succeeds, everything before it has been given back.
		for h.Put("pod/c", nil, text(t, "c")) != nil {
			time.Sleep(time.Millisecond)
		}
		if _, err := next.Get("pod/b"); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was deleted meanwhile came back: %v", err)
		}
		if _, err := next.Get("pod/late"); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was refused came back: %v", err)
		}
		other, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if other.Claim(t.Context(), "n1") == nil {
			t.Error("the lease was not claimed again")
		}
		other.Close()
	}
	defer stop()
}

// TestHostListener shows that the init step's socket is used, and outlives each agent's use of it.
func TestHostListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	k, stop := startKeeper(t, path)
	defer stop()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Put(ListenPrefix+addr, nil, f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	ln.Close()
	h, err := Hold(t.Context(), path, "n1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for range 2 { // agents
		c, err := net.Dial("tcp", addr) // before this agent listens
		if err != nil {
			t.Fatal(err)
		}
		l, err := h.Listener(addr)
		if err != nil {
			t.Fatal(err)
		}
		at, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		at.Close()
		c.Close()
		l.Close()
	}
	own, err := h.Listener("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own.Close()
}
