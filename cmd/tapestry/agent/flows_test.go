package agent

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/keeper"
)

// flowKeeper is a keeper that holds flow memory, and counts how often it was given some.
type flowKeeper struct {
	*keeper.Keeper
	t    *testing.T
	puts int
	fail error
}

func newFlowKeeper(t *testing.T) *flowKeeper {
	k := &flowKeeper{Keeper: keeper.New(), t: t}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func (k *flowKeeper) put(f *os.File) error {
	if k.fail != nil {
		return k.fail
	}
	k.puts++
	return k.Put(flowsKey, nil, f)
}

// kept returns the file that an agent gets when it starts, or nil if the keeper holds none.
func (k *flowKeeper) kept() *os.File {
	it, err := k.Get(flowsKey)
	if errors.Is(err, keeper.ErrNotFound) {
		return nil
	}
	if err != nil {
		k.t.Fatal(err)
	}
	return it.File
}

// open does what an agent does when it starts.
func (k *flowKeeper) open(capacity int) *flow.Table {
	k.t.Helper()
	table, err := openFlows(k.kept(), capacity, k.put)
	if err != nil {
		k.t.Fatal(err)
	}
	return table
}

// versions are those of the flow memory that earlier agents left.
var versions = []string{"v1", "v2"}

// leave makes the keeper hold the memory of an agent of an earlier version, with 1,000 connections to Services.
func (k *flowKeeper) leave(version string) {
	f, err := os.Open("../../../netstack/flow/testdata/" + version + ".thousand.gz")
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		k.t.Fatal(err)
	}
	image, err := io.ReadAll(z)
	if err != nil {
		k.t.Fatal(err)
	}
	memory, err := keeper.NewMemory(version, len(image))
	if err != nil {
		k.t.Fatal(err)
	}
	defer memory.Close()
	mem, err := keeper.Map(memory)
	if err != nil {
		k.t.Fatal(err)
	}
	copy(mem, image)
	if err := unix.Munmap(mem); err != nil {
		k.t.Fatal(err)
	}
	if err := k.Put(flowsKey, nil, memory); err != nil {
		k.t.Fatal(err)
	}
}

func TestOpenFlows(t *testing.T) {
	k := newFlowKeeper(t)
	if s := k.open(2000).Stats(); k.puts != 1 || s.Capacity != 2000 || s.Reformatted {
		t.Fatalf("new memory: %d puts, %+v", k.puts, s)
	}
	if s := k.open(2000).Stats(); k.puts != 1 || s.Reformatted {
		t.Errorf("the same again: %d puts, %+v", k.puts, s)
	}
}

// TestUpgradeFlows checks that an agent that finds memory of an earlier version takes over all 1,000 flows, and makes
// the keeper hold its new memory. The next agent finds the new memory.
func TestUpgradeFlows(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			k := newFlowKeeper(t)
			k.leave(version)
			table := k.open(4096)
			if s := table.Stats(); k.puts != 1 || s.Kept != 1000 || s.Discarded != 0 || s.Unfit != 0 || s.Reformatted || s.Capacity != 4096 {
				t.Errorf("%d puts, %+v", k.puts, s)
			}
			// The flows are charged to the 20 pods that began them.
			if s := table.Stats(); s.Owners != 20 || s.Most != 50 {
				t.Errorf("%d owners, the one with the most has %d; want 20 with 50 each", s.Owners, s.Most)
			}
			table.Range(func(e *flow.Entry, _ flow.Info) bool {
				if version == "v1" && e.Owner != netstack.FlowOwner(e) || e.Owner == 0 {
					t.Errorf("%v is of owner %d", e.Orig, e.Owner)
					return false
				}
				return true
			})
			if s := k.open(4096).Stats(); k.puts != 1 || s.Kept != 1000 {
				t.Errorf("the next agent: %d puts, %+v", k.puts, s)
			}
		})
	}
}

// TestUpgradeInterrupted checks that until the keeper holds the new memory, it holds the old memory unchanged.
func TestUpgradeInterrupted(t *testing.T) {
	k := newFlowKeeper(t)
	k.leave("v2")
	k.fail = errors.New("killed")
	if _, err := openFlows(k.kept(), 4096, k.put); !errors.Is(err, k.fail) {
		t.Fatalf("got %v", err)
	}
	k.fail = nil
	if s := k.open(4096).Stats(); s.Kept != 1000 {
		t.Errorf("%+v", s)
	}
}

// TestResizeFlows checks that another value of --flows moves as many flows as there is room for.
func TestResizeFlows(t *testing.T) {
	k := newFlowKeeper(t)
	k.leave("v2")
	for _, c := range []struct{ capacity, kept, unfit int }{{1000, 1000, 0}, {5000, 1000, 0}, {600, 600, 400}, {2000, 600, 0}} {
		if s := k.open(c.capacity).Stats(); s.Capacity != c.capacity || s.Kept != c.kept || s.Unfit != c.unfit {
			t.Errorf("for %d: %+v", c.capacity, s)
		}
	}
}

// TestStrangeFlows checks that an empty table replaces memory that is not a flow table, or is of a later version.
func TestStrangeFlows(t *testing.T) {
	k := newFlowKeeper(t)
	memory, err := keeper.NewMemory("strange", 5000)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if _, err := memory.WriteAt([]byte("not a table"), 0); err != nil {
		t.Fatal(err)
	}
	if err := k.Put(flowsKey, nil, memory); err != nil {
		t.Fatal(err)
	}
	if s := k.open(100).Stats(); !s.Reformatted || s.Kept != 0 || k.puts != 1 {
		t.Errorf("%d puts, %+v", k.puts, s)
	}
}
