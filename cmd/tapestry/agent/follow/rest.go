package follow

import (
	"context"
	"time"
)

const (
	// restFactor is how many times as long as it took to apply a state the Follower rests before the next one. So
	// whoever changes objects without a pause takes a quarter of a processor at most, as long as a state takes 100 ms
	// at most, and what changes meanwhile is applied at once. A change that comes alone finds the Follower rested.
	restFactor = 3
	// mostRest is how long it rests at most: a longer rest would leave the node behind the cluster. A state that takes
	// longer than 100 ms takes more than a quarter.
	mostRest = 300 * time.Millisecond
)

// rest waits after a state that took this long to apply, until something is urgent, or until ctx ends.
func rest(ctx context.Context, took time.Duration, urgent <-chan struct{}) {
	t := time.NewTimer(min(restFactor*took, mostRest))
	defer t.Stop()
	select {
	case <-t.C:
	case <-urgent:
	case <-ctx.Done():
	}
}
