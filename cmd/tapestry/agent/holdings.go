package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/keeper/fdpass"
)

// holdings is what the keeper holds for this agent. The agent has a duplicate of each, so that a keeper that ended, or was
// replaced, is given everything back by the agent. Only when both are gone at once it is lost.
type holdings struct {
	path, node string
	log        *slog.Logger

	mu     sync.Mutex
	client *keeper.Client
	items  map[string]holding
}

// holding is one duplicate. It is a plain descriptor: that of a TAP must not be registered with the runtime's poller.
type holding struct {
	meta json.RawMessage
	fd   int
}

// openHoldings claims the lease for the node and takes stock of what the keeper has.
func openHoldings(ctx context.Context, path, node string, log *slog.Logger) (*holdings, error) {
	h := &holdings{path: path, node: node, log: log, items: map[string]holding{}}
	var err error
	if h.client, err = keeper.Dial(ctx, path); err != nil {
		return nil, err
	}
	if err := h.client.Claim(ctx, node); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Close ends the lease. What the keeper holds stays.
func (h *holdings) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.client.Close()
	for _, it := range h.items {
		unix.Close(it.fd)
	}
	clear(h.items)
}

// List gives everything the keeper has; the files belong to the caller.
func (h *holdings) List() ([]keeper.Item, error) {
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

func (h *holdings) remember(key string, meta json.RawMessage, f *os.File) error {
	fd, err := fdpass.Dup(f)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	h.forget(key)
	h.items[key] = holding{meta, fd}
	return nil
}

func (h *holdings) forget(key string) {
	if it, ok := h.items[key]; ok {
		unix.Close(it.fd)
		delete(h.items, key)
	}
}

// Get is keeper.Client's.
func (h *holdings) Get(key string) (keeper.Item, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.client.Get(key)
}

// Put has keeper and agent hold a duplicate of f. When it returns nil, the keeper has it.
func (h *holdings) Put(key string, meta json.RawMessage, f *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.client.Put(key, meta, f); err != nil {
		return err
	}
	return h.remember(key, meta, f)
}

// Delete lets go of what is under key. A keeper that is gone has let go already, and the next will not get it.
func (h *holdings) Delete(key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(key)
	if err := h.client.Delete(key); err != nil {
		h.log.Debug("the keeper was not told to let go", "key", key, "err", err)
	}
	return nil
}

// reconnectTime is between two attempts to reach a keeper: one that is replaced is back within seconds.
const reconnectTime = 200 * time.Millisecond

// run gives the next keeper everything back whenever one has ended, until ctx is done.
func (h *holdings) run(ctx context.Context) {
	for ctx.Err() == nil {
		// That our own connection is good when the watching one is made tells that both are to the same keeper.
		err := keeper.Wait(ctx, h.path, func() error { return h.claim(ctx) })
		if ctx.Err() != nil {
			return
		}
		h.log.Warn("the keeper is gone; the next one gets back what it held, if this agent does not end before", "err", err)
		if !h.untilGivenBack(ctx) {
			return
		}
	}
}

// untilGivenBack tries until there is a keeper that has everything. It reports false when ctx was done before.
func (h *holdings) untilGivenBack(ctx context.Context) bool {
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
			h.log.Warn("no keeper holds what this node would lose with its agent", "err", err)
		}
	}
}

func (h *holdings) claim(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.client.Claim(ctx, h.node)
}

// giveBack connects to a new keeper and has it hold everything.
func (h *holdings) giveBack(ctx context.Context) error {
	client, err := keeper.Dial(ctx, h.path)
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

func put(client *keeper.Client, key string, it holding) error {
	dup, err := unix.FcntlInt(uintptr(it.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep %q: %w", key, err)
	}
	f := os.NewFile(uintptr(dup), key)
	defer f.Close()
	return client.Put(key, it.meta, f)
}
