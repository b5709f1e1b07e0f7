package tap

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Rate is a limit on what an interface sends or is sent.
type Rate struct {
	// Bits is the rate in bits per second, at least 8.
	Bits uint64
	// Burst is how many bits may be sent at once after a silence. It is raised to two superframes, since with less
	// nothing would ever be sent, and lowered to what Bits allows in a second, since with more there would hardly be a
	// limit.
	Burst uint64
}

// queueTime is the longest time that a packet waits for its turn. Then it is dropped.
const queueTime = 0.025 // seconds

// minBurst is in bytes. It lets a superframe through in one piece.
const minBurst = 2 * 64 << 10

// limits are the parameters of the kernel's token bucket (tc-tbf(8)).
type limits struct {
	rate   uint64 // bytes per second
	buffer uint32 // how long the burst takes at that rate, in the kernel's ticks
	queue  uint32 // bytes that may wait
}

// BurstBytes returns how many bytes may be sent at once, after the bounds of Burst.
func (r Rate) BurstBytes() uint64 {
	return min(max(minBurst, min(r.Burst, r.Bits)/8), math.MaxUint32/2)
}

func (r Rate) limits() limits {
	rate, burst := r.Bits/8, r.BurstBytes()
	ticks := float64(burst) / float64(rate) * netlink.TIME_UNITS_PER_SEC * netlink.TickInUsec()
	queue := float64(rate)*queueTime + float64(burst)
	return limits{rate, uint32(min(max(ticks, 1), math.MaxUint32)), uint32(min(queue, math.MaxUint32))}
}

// Limit makes the kernel hold back what an interface in ns sends beyond a rate. It replaces an earlier limit. It counts
// the bytes of Ethernet frames.
func Limit(ns *Namespace, name string, r Rate) error {
	if r.Bits < 8 {
		return fmt.Errorf("limit interface %s: %d bits per second are less than a byte", name, r.Bits)
	}
	return withLink(ns, "limit", name, func(h *netlink.Handle, l netlink.Link) error {
		k := r.limits()
		q := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       k.rate, Buffer: k.buffer, Limit: k.queue,
		}
		err := h.QdiscReplace(q)
		if errors.Is(err, unix.ENOENT) {
			return errors.New("this kernel has no token bucket: load its module sch_tbf, or remove the limit")
		}
		return err
	})
}

// Limited returns the limit, in bits per second, that Limit set on an interface in ns; 0 means none.
func Limited(ns *Namespace, name string) (bits uint64, err error) {
	err = withLink(ns, "inspect", name, func(h *netlink.Handle, l netlink.Link) error {
		list, err := h.QdiscList(l)
		for _, q := range list {
			if tbf, ok := q.(*netlink.Tbf); ok {
				bits = tbf.Rate * 8
			}
		}
		return err
	})
	return bits, err
}
