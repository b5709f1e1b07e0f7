package underlay

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/lab/impair"
)

// impairment is a bad path between two members of the underlay.
type impairment struct {
	segment *impair.Segment
	config  impair.Config
}

// String describes the impairment.
func (i *impairment) String() string {
	c := i.config
	var parts []string
	add := func(on bool, format string, args ...any) {
		if on {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(c.Loss > 0, "loss %g%%", 100*c.Loss)
	add(c.Duplicate > 0, "duplicate %g%%", 100*c.Duplicate)
	add(c.Reorder > 0, "reorder %g%%", 100*c.Reorder)
	add(c.Delay > 0, "delay %s", c.Delay)
	add(c.Jitter > 0, "jitter %s", c.Jitter)
	add(c.Rate > 0, "rate %d bit/s", c.Rate)
	add(c.Family != 0, "IPv%d alone", c.Family)
	add(c.MTU > 0, "mtu %d", c.MTU)
	add(c.MTU > 0 && !c.ICMP, "no icmp")
	add(true, "seed %d", c.Seed)
	return strings.Join(parts, ", ")
}

// memberMAC returns the Ethernet address of a member's eth0.
func memberMAC(name string) packet.MAC {
	h := sha256.Sum256([]byte("underlay " + name))
	return packet.MAC{h[0]&^0x01 | 0x02, h[1], h[2], h[3], h[4], h[5]}
}

// pairOf names the path between two members, in whichever order they are given.
func pairOf(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// Impair makes the path between two members as bad as config says.
func (u *Underlay) Impair(a, b string, config impair.Config) error {
	pair := pairOf(a, b)
	u.mu.Lock()
	defer u.mu.Unlock()
	if present := u.impaired[pair]; present != nil {
		if err := present.segment.Set(config); err != nil {
			return err
		}
		present.config = config
		return nil
	}
	from, to := u.members[pair[0]], u.members[pair[1]]
	if from == nil || to == nil || from == to {
		return fmt.Errorf("%s and %s are not two members of the underlay: name two nodes, or a node and %s", pair[0], pair[1], Outside)
	}
	segment, err := impair.Insert(impair.Options{Port: from.port, A: memberMAC(pair[0]), B: memberMAC(pair[1]), Config: config})
	if err != nil {
		return err
	}
	u.impaired[pair] = &impairment{segment, config}
	return nil
}

// Unimpair restores a path.
func (u *Underlay) Unimpair(a, b string) error {
	pair := pairOf(a, b)
	u.mu.Lock()
	defer u.mu.Unlock()
	present := u.impaired[pair]
	if present == nil {
		return fmt.Errorf("the path between %s and %s is not impaired", pair[0], pair[1])
	}
	delete(u.impaired, pair)
	return present.segment.Remove()
}

// restore restores all paths of a member.
func (u *Underlay) restore(name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	for pair, im := range u.impaired {
		if pair[0] == name || pair[1] == name {
			delete(u.impaired, pair)
			errs = append(errs, im.segment.Remove())
		}
	}
	return errors.Join(errs...)
}

// Impairments describes the impaired paths, sorted.
func (u *Underlay) Impairments() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []string
	for pair, im := range u.impaired {
		out = append(out, pair[0]+" - "+pair[1]+": "+im.String())
	}
	slices.Sort(out)
	return out
}
