package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
)

// Holdings is the agent's side of the keeper. The agent has a duplicate of each descriptor that the keeper holds for
// it, and gives all of them to the next keeper when one has ended. They are lost only when both end at once. Its
// methods are safe for concurrent use.
type Holdings struct {
	path, node string
	log        *slog.Logger

	mu sync.Mutex
	// mu guards what follows. It is held during requests to the keeper, so that items and the keeper change in the same
	// order.
	client *Client
	items  map[string]holding
}

// holding is one duplicate. It is a plain descriptor, because a TAP's descriptor must not be registered with the
// runtime's poller.
type holding struct {
	meta json.RawMessage
	fd   int
}

// Hold connects to the keeper at path and claims the lease of the agent of a node. It logs to log when the keeper goes
// and comes back.
func Hold(ctx context.Context, path, node string, log *slog.Logger) (*Holdings, error) {
	h, err := dialHoldings(ctx, path, node, log)
	if err != nil {
		return nil, err
	}
	if err := h.client.Claim(ctx, node); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// dialHoldings connects to the keeper, and claims nothing.
func dialHoldings(ctx context.Context, path, node string, log *slog.Logger) (*Holdings, error) {
	client, err := Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Holdings{path: path, node: node, log: log, items: map[string]holding{}, client: client}, nil
}

// Close ends the lease. The keeper goes on holding what it has.
func (h *Holdings) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.client.Close()
	for _, it := range h.items {
		unix.Close(it.fd)
	}
	clear(h.items)
}

// List returns everything that the keeper has, and keeps a duplicate of each descriptor. The files belong to the
// caller.
func (h *Holdings) List() ([]Item, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	items, err := h.client.List()
	for i := 0; err == nil && i < len(items); i++ {
		err = h.remember(items[i].Key, items[i].Meta, items[i].File)
	}
	if err != nil {
		for _, it := range items {
			_ = it.File.Close()
		}
		return nil, err
	}
	return items, nil
}

func (h *Holdings) remember(key string, meta json.RawMessage, f *os.File) error {
	fd, err := fdpass.Dup(f)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	h.forget(key)
	h.items[key] = holding{meta, fd}
	return nil
}

func (h *Holdings) forget(key string) {
	if it, ok := h.items[key]; ok {
		unix.Close(it.fd)
		delete(h.items, key)
	}
}

// Get returns what the keeper has under key. The error wraps ErrNotFound when there is nothing.
func (h *Holdings) Get(key string) (Item, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.client.Get(key)
}

// Put makes both the keeper and the agent hold a duplicate of f. When it returns nil, the keeper has it.
func (h *Holdings) Put(key string, meta json.RawMessage, f *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.client.Put(key, meta, f); err != nil {
		return err
	}
	return h.remember(key, meta, f)
}

// Delete drops what is under key. If the keeper cannot be told, it has ended and dropped it already, and the next
// keeper does not get it.
func (h *Holdings) Delete(key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(key)
	if err := h.client.Delete(key); err != nil {
		h.log.Debug("the keeper was not told to drop a descriptor", "key", key, "err", err)
	}
	return nil
}

// reconnectTime is the time between two attempts to reach a keeper. A keeper that is replaced is back within seconds.
const reconnectTime = 200 * time.Millisecond

// Run gives everything back to the next keeper whenever one has ended, until ctx ends.
func (h *Holdings) Run(ctx context.Context) {
	for ctx.Err() == nil {
		// Wait makes a connection that only watches. When the claim on h's own connection succeeds after that, both are
		// connected to the same keeper.
		err := Wait(ctx, h.path, func() error { return h.claim(ctx) })
		if ctx.Err() != nil {
			return
		}
		h.log.Warn("the keeper is gone; the next one gets back what it held, unless this agent ends first", "err", err)
		if !h.untilGivenBack(ctx) {
			return
		}
	}
}

// untilGivenBack tries until a keeper has everything. It returns false when ctx ends first.
func (h *Holdings) untilGivenBack(ctx context.Context) bool {
	tick := time.NewTicker(reconnectTime)
	defer tick.Stop()
	for said := ""; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
		err := h.giveBack(ctx)
		if err == nil {
			return true
		}
		if err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			h.log.Warn("no keeper holds the descriptors that this node loses if its agent ends", "err", err)
		}
	}
}

func (h *Holdings) claim(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.client.Claim(ctx, h.node)
}

// giveBack connects to a new keeper and makes it hold everything.
func (h *Holdings) giveBack(ctx context.Context) error {
	client, err := Dial(ctx, h.path)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	err = client.Claim(ctx, h.node)
	for key, it := range h.items {
		if err != nil {
			break
		}
		err = put(client, key, it)
	}
	if err != nil {
		_ = client.Close()
		return err
	}
	_ = h.client.Close()
	h.client = client
	h.log.Info("a new keeper holds everything again", "descriptors", len(h.items))
	return nil
}

func put(client *Client, key string, it holding) error {
	dup, err := unix.FcntlInt(uintptr(it.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	f := os.NewFile(uintptr(dup), key)
	defer f.Close()
	return client.Put(key, it.meta, f)
}
