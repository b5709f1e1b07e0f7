package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/keeper"
)

// flowsKey is the key under which the keeper holds the flow memory.
const flowsKey = "flows"

// openFlows takes over the flow memory in kept and closes the file. kept may be nil if there is none. If the memory is
// of an earlier version or for another number of flows, openFlows copies the flows to new memory. The new memory
// replaces the old one only when it is complete, so that an agent that is killed leaves complete memory to the next
// one. put makes the keeper hold a file in place of the kept one, in one step.
func openFlows(kept *os.File, capacity int, put func(*os.File) error) (*flow.Table, error) {
	o := flow.Options{Capacity: capacity, Owner: netstack.FlowOwner}
	var old []byte
	if kept != nil {
		defer kept.Close() // the mapping keeps it
		var err error
		if old, err = keeper.Map(kept); err != nil {
			return nil, err
		}
		if flow.Serves(old, capacity) {
			return flow.Open(old, o)
		}
		defer func() { _ = unix.Munmap(old) }() // cannot fail for memory that was mapped
	}
	memory, err := keeper.NewMemory("tapestry-flows", flow.Size(capacity))
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	mem, err := keeper.Map(memory)
	if err != nil {
		return nil, err
	}
	var table *flow.Table
	if kept == nil {
		table, err = flow.Open(mem, o)
	} else {
		table, err = flow.Convert(old, mem, o)
	}
	if err == nil {
		err = put(memory)
	}
	if err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("make memory for %d flows: %w", capacity, err)
	}
	return table, nil
}
