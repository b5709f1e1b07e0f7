package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/share/descriptors"
)

// tcpKey is the key under which the keeper holds the memory of relayed TCP connections, and the name of the shelf with
// their sockets.
const tcpKey = "relays/tcp"

// holdRelays makes relayed connections outlive this agent. With a keeper that cannot hold them, they end with it.
func (a *agent) holdRelays(ctx context.Context, memory *os.File) error {
	if err := tcprelay.Holdable(); err != nil {
		a.held.Cut = err
		a.log.Warn("relayed connections end with this agent", "err", err)
		return nil
	}
	shelf, found, err := keeper.OpenShelf(ctx, a.agentConfig.keeper, tcpKey)
	if errors.Is(err, keeper.ErrNoShelf) {
		a.held.Cut = keeper.ErrNoShelf
		a.log.Warn("relayed connections end with this agent", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	a.shelf = shelf
	slots := min(a.plan.Of(descriptors.EgressTCP), shelf.Most())
	m, err := openMemo(memory, slots, func(f *os.File) error { return a.kept.Put(tcpKey, nil, f) })
	if err != nil {
		return err
	}
	a.held.TCP = &tcprelay.Hold{Memory: m, Most: slots, Release: shelf.Release, Found: found, Keep: func(slots []uint32, fds []int) error {
		err := shelf.Keep(slots, fds)
		if errors.Is(err, keeper.ErrShelfBusy) {
			return tcprelay.ErrKeepLater
		}
		return err
	}}
	return nil
}

// openMemo takes over the memory in kept and closes the file. It makes new memory when there is none, or it is of a version
// that this agent does not know: then the connections in it are lost. Memory of another size is used as it is: connections
// that find no slot in it end with this agent.
func openMemo(kept *os.File, slots int, put func(*os.File) error) (*memo.Memo, error) {
	if kept != nil {
		defer kept.Close() // the mapping keeps it
		mem, err := keeper.Map(kept)
		if err != nil {
			return nil, err
		}
		m, err := memo.Open(mem, tcprelay.MemoryKind)
		if err == nil {
			return m, nil
		}
		_ = unix.Munmap(mem) // cannot fail for memory that was mapped
		if !errors.Is(err, memo.ErrForeign) {
			return nil, err
		}
	}
	memory, err := keeper.NewMemory("tapestry-relays", memo.Size(slots))
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	mem, err := keeper.Map(memory)
	if err != nil {
		return nil, err
	}
	m, err := memo.Open(mem, tcprelay.MemoryKind)
	if err == nil {
		err = put(memory)
	}
	if err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("make memory for %d relayed connections: %w", slots, err)
	}
	return m, nil
}

// keepRelays gives what is relayed to the next keeper whenever one has ended, until ctx ends.
func (a *agent) keepRelays(ctx context.Context) {
	select {
	case <-a.follower.Started():
		a.shelf.Run(ctx, a.follower.Node().KeepAgain)
	case <-ctx.Done():
	}
}
