package tell

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"tapestry.dev/tapestry/netstack/keeper"
)

// checkStarted returns an error until the first complete snapshot of the cluster is applied.
func (t *Teller) checkStarted(context.Context) error {
	if t.o.Follower.HasStarted() {
		return nil
	}
	if h := t.o.State(); len(h.Waiting) > 0 {
		waiting := errors.New("waiting for " + strings.Join(h.Waiting, ", "))
		if h.Err != nil {
			waiting = fmt.Errorf("%w: %w", waiting, h.Err)
		}
		return waiting
	}
	return fmt.Errorf("the cluster has no Node %s with a podCIDR, or not all of its objects are known yet", t.o.Node)
}

// checkKeeper asks the keeper for a key that it does not have. Without a keeper, the next agent would start with
// nothing.
func (t *Teller) checkKeeper(context.Context) error {
	it, err := t.o.Keeper.Get("health")
	switch {
	case errors.Is(err, keeper.ErrNotFound):
		return nil
	case err == nil:
		_ = it.File.Close()
		return nil
	}
	return fmt.Errorf("%w; start a keeper before this agent ends, and it gets back what the last one held", err)
}
