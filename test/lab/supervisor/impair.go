package supervisor

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/lab/impair"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// impairment is a bad path between two members of the underlay.
type impairment struct {
	segment *impair.Segment
	config  impair.Config
}

// String describes what is bad.
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
	add(c.MTU > 0, "mtu %d", c.MTU)
	add(c.MTU > 0 && !c.ICMP, "no icmp")
	add(true, "seed %d", c.Seed)
	return strings.Join(parts, ", ")
}

// memberMAC is the Ethernet address of a member's eth0.
func memberMAC(name string) packet.MAC {
	h := sha256.Sum256([]byte("underlay " + name))
	return packet.MAC{h[0]&^0x01 | 0x02, h[1], h[2], h[3], h[4], h[5]}
}

// doImpair changes or ends the impairment of a pair.
func (l *lab) doImpair(r *rpc.Request) error {
	if r.Impair == nil {
		return fmt.Errorf("%s: no pair was named", r.Op)
	}
	pair := [2]string{r.Impair.A, r.Impair.B}
	if pair[0] > pair[1] {
		pair[0], pair[1] = pair[1], pair[0]
	}
	var config impair.Config
	if r.Op == rpc.OpImpair {
		if err := json.Unmarshal(r.Impair.Config, &config); err != nil {
			return err
		}
	}
	defer l.changed()
	l.mu.Lock()
	defer l.mu.Unlock()
	present := l.impaired[pair]
	switch {
	case r.Op == rpc.OpUnimpair && present == nil:
		return fmt.Errorf("the path between %s and %s is not impaired", pair[0], pair[1])
	case r.Op == rpc.OpUnimpair:
		delete(l.impaired, pair)
		return present.segment.Remove()
	case present != nil:
		if err := present.segment.Set(config); err != nil {
			return err
		}
		present.config = config
		return nil
	}
	a, b := l.underlay.member(pair[0]), l.underlay.member(pair[1])
	if a == nil || b == nil || a == b {
		return fmt.Errorf("%s and %s are not two members of the underlay: name two nodes, or a node and %s", pair[0], pair[1], outsideName)
	}
	segment, err := impair.Insert(impair.Options{Port: a.port, A: memberMAC(pair[0]), B: memberMAC(pair[1]), Config: config})
	if err != nil {
		return err
	}
	l.impaired[pair] = &impairment{segment, config}
	return nil
}

// endImpairmentsOf restores all paths of a member that is about to go.
func (l *lab) endImpairmentsOf(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for pair, im := range l.impaired {
		if pair[0] == name || pair[1] == name {
			delete(l.impaired, pair)
			errs = append(errs, im.segment.Remove())
		}
	}
	if err := errors.Join(errs...); err != nil {
		l.log.Warn("cannot end an impairment", "node", name, "err", err)
	}
}
