package scale

import (
	"context"
	"slices"
	"time"
)

// change measures the time from a change of one EndpointSlice to the first packet that follows it, with count Services
// in the cluster. The slice moves its Service from one backend to another and back. The clock starts when the new file
// is renamed into place, and stops when the client has the first answer of the new backend.
func change(ctx context.Context, o Options, count int, name string, f *figures) error {
	n, t, err := talkingNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.close()
	n.kill()
	if err := writeCluster(n.manifests, count, o.Endpoints); err != nil {
		return err
	}
	if _, err := firstAnswer(ctx, n, t); err != nil {
		return err
	}
	if err := n.settle(ctx); err != nil {
		return err
	}
	turn := 0
	for range o.Rounds {
		var took []time.Duration
		for range o.Changes {
			turn++
			next := t.servers[turn%2].addr
			rename, err := put(n.manifests, targetFile, target(next))
			if err != nil {
				return err
			}
			// The hidden file is an event as well. The pause lets the agent handle it.
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
			begin := time.Now()
			if err := rename(); err != nil {
				return err
			}
			at, err := t.await(ctx, next, begin)
			if err != nil {
				return err
			}
			took = append(took, at.Sub(begin))
		}
		slices.Sort(took)
		f.add(name+" p50", "agent", "ms", milliseconds(took[len(took)/2]))
		f.add(name+" p99", "agent", "ms", milliseconds(took[(len(took)*99-1)/100]))
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
