package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/netstack/udprelay"
	"tapestry.dev/tapestry/share/descriptors"
)

// tcpKey and udpKey are the keys under which the keeper holds the memory of what is relayed, and the names of the
// shelves with the sockets.
const (
	tcpKey = "relays/tcp"
	udpKey = "relays/udp"
)

// holdRelays makes what is relayed outlive this agent, with the memory among kept. With a keeper that cannot hold it,
// it ends with the agent.
func (a *agent) holdRelays(ctx context.Context, kept map[string]*os.File) error {
	why := tcprelay.Holdable()
	if why == nil {
		why = a.holdTCP(ctx, kept[tcpKey])
	}
	if why == nil || errors.Is(why, tcprelay.ErrNotHoldable) {
		if err := a.holdUDP(ctx, kept[udpKey]); err != nil && !errors.Is(err, keeper.ErrNoShelf) {
			return err
		}
	}
	switch {
	case errors.Is(why, keeper.ErrNoShelf), errors.Is(why, tcprelay.ErrNotHoldable):
		a.held.Cut = why
		a.log.Warn("relayed connections end with this agent", "err", why)
		return nil
	}
	return why
}

func (a *agent) holdTCP(ctx context.Context, memory *os.File) error {
	shelf, found, err := a.openShelf(ctx, tcpKey)
	if err != nil {
		return err
	}
	slots := min(a.plan.Of(descriptors.EgressTCP), shelf.Most())
	m, err := openMemo(memory, tcprelay.MemoryKind, slots, func(f *os.File) error { return a.kept.Put(tcpKey, nil, f) })
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

func (a *agent) holdUDP(ctx context.Context, memory *os.File) error {
	shelf, found, err := a.openShelf(ctx, udpKey)
	if err != nil {
		return err
	}
	slots := min(a.plan.Of(descriptors.EgressUDP), shelf.Most())
	// A socket has two conversations on average at most (udprelay.Options).
	m, err := openMemo(memory, udprelay.MemoryKind, 3*slots, func(f *os.File) error { return a.kept.Put(udpKey, nil, f) })
	if err != nil {
		return err
	}
	a.held.UDP = &udprelay.Hold{Memory: m, Most: slots, Release: shelf.Release, Found: found, Keep: shelf.Keep}
	return nil
}

func (a *agent) openShelf(ctx context.Context, name string) (*keeper.Shelf, map[uint32]int, error) {
	shelf, found, err := keeper.OpenShelf(ctx, a.agentConfig.keeper, name)
	if err == nil {
		a.shelves = append(a.shelves, shelf)
	}
	return shelf, found, err
}

// openMemo takes over the memory in kept and closes the file. It makes new memory when there is none, or it is of a
// version that this agent does not know: then what is in it is lost. Memory of another size is used as it is: what
// finds no slot in it ends with this agent.
func openMemo(kept *os.File, kind uint64, slots int, put func(*os.File) error) (*memo.Memo, error) {
	if kept != nil {
		defer kept.Close() // the mapping keeps it
		mem, err := keeper.Map(kept)
		if err != nil {
			return nil, err
		}
		m, err := memo.Open(mem, kind)
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
	m, err := memo.Open(mem, kind)
	if err == nil {
		err = put(memory)
	}
	if err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("make memory for what is relayed: %w", err)
	}
	return m, nil
}

// keepRelays gives what is relayed to the next keeper whenever one has ended, until ctx ends.
func (a *agent) keepRelays(ctx context.Context) {
	select {
	case <-a.follower.Started():
	case <-ctx.Done():
		return
	}
	var all sync.WaitGroup
	for _, s := range a.shelves {
		all.Go(func() { s.Run(ctx, a.follower.Node().KeepAgain) })
	}
	all.Wait()
}

func (a *agent) leaveShelves() {
	for _, s := range a.shelves {
		s.Close()
	}
}
