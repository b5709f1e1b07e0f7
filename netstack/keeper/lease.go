package keeper

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// ErrLeased says that another agent has the lease.
var ErrLeased = errors.New("another agent has the lease")

// leasedText is in the answer of every keeper to a claim while another agent has the lease. Those of earlier versions
// say so by this alone.
const leasedText = "is already running"

// leased is ErrLeased with the keeper's own words.
type leased struct{ text string }

func (l leased) Error() string      { return l.text }
func (leased) Is(target error) bool { return target == ErrLeased }

// claimPause is the time between two attempts to get the lease: the longest time in which nobody has it when one agent
// takes over from another.
const claimPause = 10 * time.Millisecond

// HoldNext is Hold, but waits while another agent has the lease. It calls waiting before the first wait.
func HoldNext(ctx context.Context, path, node string, log *slog.Logger, waiting func()) (*Holdings, error) {
	h, err := dialHoldings(ctx, path, node, log)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(claimPause)
	defer tick.Stop()
	for first := true; ; first = false {
		err := h.client.Claim(ctx, node)
		if err == nil {
			return h, nil
		}
		if !errors.Is(err, ErrLeased) {
			h.Close()
			return nil, err
		}
		if first {
			waiting()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			h.Close()
			return nil, ctx.Err()
		}
	}
}
