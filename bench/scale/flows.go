package scale

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/packet"
)

// fill measures a flow table that is filled to the brim: the cost of an insert while it fills, the cost of a lookup
// when it is full, and the memory of a flow. Tuples come in an order that caches cannot foresee, like packets.
func fill(ctx context.Context, o Options, flows int, name string, f *figures) error {
	for range o.Rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fillOnce(flows, name, f); err != nil {
			return err
		}
	}
	return nil
}

func fillOnce(flows int, name string, f *figures) error {
	debug.FreeOSMemory() // so that memory of earlier rounds does not shrink during this one
	before, err := memoryOf(os.Getpid())
	if err != nil {
		return err
	}
	// The table has some spare room: a table that is nearly full evicts flows, and fill measures flows that stay.
	file, err := keeper.NewMemory("tapestry-bench-flows", flow.Size(flows+flows/8))
	if err != nil {
		return err
	}
	defer file.Close()
	mem, err := keeper.Map(file)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }() // cannot fail for memory that was mapped
	table, err := flow.Open(mem, flow.Options{})
	if err != nil {
		return err
	}
	begin := time.Now()
	for i := range flows {
		e := flow.Entry{Orig: tuple(i), Backend: uint64(i + 1), Segment: packet.Segment{Flags: packet.SYN}, Checked: 1}
		to := e.Orig
		to.Dst, to.DstPort = backendAddr, serverPort
		e.Reply = to.Reverse()
		if _, result := table.Insert(&e); result != flow.Inserted {
			return fmt.Errorf("flow %d of %d was not inserted (%v)", i, flows, result)
		}
	}
	f.add(name+" insert", "table", "ns", perItem(time.Since(begin), flows))
	after, err := memoryOf(os.Getpid())
	if err != nil {
		return err
	}
	f.add(name+" RSS per flow", "table", "B", float64(after.rss-before.rss)/float64(flows))

	hits, hit := lookups(table, flows, 0)
	f.add(name+" lookup hit", "table", "ns", hit)
	strangers, miss := lookups(table, flows, flows)
	f.add(name+" lookup miss", "table", "ns", miss)
	if found := hits + strangers; hits != flows || strangers != 0 {
		return fmt.Errorf("%d flows were found, want %d", found, flows)
	}
	return nil
}

// lookups looks up count connections, beginning with number first. It returns how many were found and the time of one
// lookup in nanoseconds. The tuples are made before the clock starts, in the order of the lookups.
func lookups(table *flow.Table, count, first int) (found int, each float64) {
	tuples := make([]packet.Tuple, count)
	for i := range tuples {
		tuples[i] = tuple(first + scatter(i, count))
	}
	var hit flow.Hit
	data := packet.Segment{Flags: packet.ACK}
	begin := time.Now()
	for i := range tuples {
		if table.Lookup(&tuples[i], data, &hit) {
			found++
		}
	}
	return found, perItem(time.Since(begin), count)
}

func perItem(d time.Duration, n int) float64 { return float64(d.Nanoseconds()) / float64(n) }

// scatter returns number i of the numbers below n in an order without pattern, each once. Its step has no factor in
// common with n.
func scatter(i, n int) int {
	step := 1
	for _, prime := range []int{7_368_787, 1_299_709, 104_729, 7_919} {
		if n%prime != 0 {
			step = prime
			break
		}
	}
	return i * step % n
}

var (
	frontendAddr = packet.AddrFrom(targetAddr)
	backendAddr  = packet.AddrFrom(netip.MustParseAddr("10.244.1.11"))
)

// tuple returns the tuple of connection number i. Its clients are of 10.0.0.0/8, with 16,384 ports each.
func tuple(i int) packet.Tuple {
	const ports = 1 << 14
	client := i / ports
	return packet.Tuple{
		Src: packet.AddrFrom(netip.AddrFrom4([4]byte{10, byte(client >> 16), byte(client >> 8), byte(client)})), SrcPort: uint16(i%ports + 1<<15),
		Dst: frontendAddr, DstPort: targetPort, Proto: packet.TCP,
	}
}
