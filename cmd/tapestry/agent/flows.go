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

// openFlows takes over the flow memory that is kept, nil for none, and closes the file. Where that is of an earlier
// version or for another number of flows, the flows move to new memory, which takes the place of the old one only once
// it is whole. So an agent that is killed leaves one or the other to the next, never half of it. put has the keeper
// hold a file in place of what is kept, in one step.
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
		defer func() { _ = unix.Munmap(old) }() // fails for nothing that was mapped
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
