package tap

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Rate limits what an interface sends, or is sent.
type Rate struct {
	// Bits per second, at least 8.
	Bits uint64
	// Burst in bits is what may be sent at once after a silence. Less than two superframes, or more than a second's worth,
	// is brought within: with less nothing would ever be sent, and with more there would be no limit to speak of.
	Burst uint64
}

// queueTime is how long a packet waits for its turn at most before it is dropped.
const queueTime = 0.025 // seconds

// minBurst in bytes lets a superframe through in one piece.
const minBurst = 2 * 64 << 10

// limits are what the kernel's token bucket (tc-tbf(8)) is told.
type limits struct {
	rate   uint64 // bytes per second
	buffer uint32 // in the kernel's ticks: how long the burst takes at that rate
	queue  uint32 // bytes that may wait
}

// BurstBytes is how many bytes may come at once.
func (r Rate) BurstBytes() uint64 {
	return min(max(minBurst, min(r.Burst, r.Bits)/8), math.MaxUint32/2)
}

func (r Rate) limits() limits {
	rate, burst := r.Bits/8, r.BurstBytes()
	ticks := float64(burst) / float64(rate) * netlink.TIME_UNITS_PER_SEC * netlink.TickInUsec()
	queue := float64(rate)*queueTime + float64(burst)
	return limits{rate, uint32(min(ticks, math.MaxUint32)), uint32(min(queue, math.MaxUint32))}
}

// Limit has the kernel hold back what an interface in ns sends beyond a rate, in place of an earlier limit. It counts
// bytes of Ethernet frames.
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

// Limited tells the limit in bits per second that Limit gave an interface in ns; 0 for none.
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
