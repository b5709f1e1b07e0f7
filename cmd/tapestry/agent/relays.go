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
	"tapestry.dev/tapestry/services/nodeport"
	"tapestry.dev/tapestry/share/descriptors"
)

// tcpKey and udpKey are the keys under which the keeper holds the memory of what is relayed, and the names of the
// shelves with the sockets. sessionsKey is that of the memory of UDP sessions of node ports, whose sockets are the
// listening ones.
const (
	tcpKey      = "relays/tcp"
	udpKey      = "relays/udp"
	sessionsKey = "relays/sessions"
)

// holdRelays makes what is relayed outlive this agent, with the memory among kept. With a keeper that cannot hold it,
// it ends with the agent.
func (a *agent) holdRelays(ctx context.Context, kept map[string]*os.File) (err error) {
	slots := a.plan.Of(descriptors.NodePortUDP)
	a.held.Sessions, err = a.openMemo(sessionsKey, kept, nodeport.SessionsKind, slots)
	if err != nil {
		return err
	}
	why := tcprelay.Holdable()
	if why == nil {
		why = a.holdTCP(ctx, kept)
	}
	if why == nil || errors.Is(why, tcprelay.ErrNotHoldable) {
		if err := a.holdUDP(ctx, kept); err != nil && !errors.Is(err, keeper.ErrNoShelf) {
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

func (a *agent) holdTCP(ctx context.Context, kept map[string]*os.File) error {
	shelf, found, err := a.openShelf(ctx, tcpKey)
	if err != nil {
		return err
	}
	slots := min(a.plan.Of(descriptors.EgressTCP), shelf.Most())
	m, err := a.openMemo(tcpKey, kept, tcprelay.MemoryKind, slots)
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

func (a *agent) holdUDP(ctx context.Context, kept map[string]*os.File) error {
	shelf, found, err := a.openShelf(ctx, udpKey)
	if err != nil {
		return err
	}
	slots := min(a.plan.Of(descriptors.EgressUDP), shelf.Most())
	// A socket has two conversations on average at most (udprelay.Options).
	m, err := a.openMemo(udpKey, kept, udprelay.MemoryKind, 3*slots)
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

// openMemo takes over the memory that the keeper held under key, or makes new memory and has the keeper hold that.
func (a *agent) openMemo(key string, kept map[string]*os.File, kind uint64, slots int) (*memo.Memo, error) {
	m, lost, err := openMemo(kept[key], kind, slots, func(f *os.File) error { return a.kept.Put(key, nil, f) })
	if lost {
		a.log.Warn("an agent of another version has written what this one cannot read: what it relayed ends, what is translated goes on", "memory", key)
	}
	return m, err
}

// openMemo takes over the memory in kept and closes the file. It makes new memory when there is none, or it is nothing
// that this agent can read, as that of a later version: then what is in it is lost. Memory of another size is used as
// it is: what finds no slot in it ends with this agent.
func openMemo(kept *os.File, kind uint64, slots int, put func(*os.File) error) (m *memo.Memo, lost bool, err error) {
	if kept != nil {
		defer kept.Close() // the mapping keeps it
		mem, err := keeper.Map(kept)
		if err != nil {
			return nil, false, err
		}
		if m, err = memo.Open(mem, kind); err == nil {
			return m, false, nil
		}
		_ = unix.Munmap(mem) // cannot fail for memory that was mapped
		lost = true
	}
	memory, err := keeper.NewMemory("tapestry-relays", memo.Size(slots))
	if err != nil {
		return nil, lost, err
	}
	defer memory.Close()
	mem, err := keeper.Map(memory)
	if err != nil {
		return nil, lost, err
	}
	m, err = memo.Open(mem, kind)
	if err == nil {
		err = put(memory)
	}
	if err != nil {
		_ = unix.Munmap(mem)
		return nil, lost, fmt.Errorf("make memory for what is relayed: %w", err)
	}
	return m, lost, nil
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
