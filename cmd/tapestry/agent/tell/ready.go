package tell

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/keeper"
)

// checkStarted returns an error until the first complete snapshot of the cluster is applied. A saved one is good enough
// only while no API server answers. Otherwise an agent that may not read the cluster would seem as good as the one that
// it replaces, and the next node's agent would be replaced as well.
func (t *Teller) checkStarted(context.Context) error {
	h := t.o.State()
	if t.o.Follower.HasStarted() && (h.Saved.IsZero() || !h.Answers) {
		return nil
	}
	if len(h.Waiting) > 0 {
		waiting := errors.New("waiting for " + strings.Join(h.Waiting, ", "))
		if h.Err != nil {
			waiting = fmt.Errorf("%w: %w", waiting, h.Err)
		}
		return waiting
	}
	return fmt.Errorf("the cluster has no Node %s with a podCIDR, or not all of its objects are known yet", t.o.Node)
}

// oldAfter is how old the cluster's objects must be before it is told. An API server that is restarted is away for
// less.
const oldAfter = 10 * time.Second

// oldText says how old the objects in use are, or "" while they are up to date.
func (t *Teller) oldText() string {
	s := t.o.State()
	if s.Age < oldAfter {
		return ""
	}
	text := fmt.Sprintf("the cluster's objects in use are %s old: the API server is not reached", s.Age.Round(time.Second))
	if !s.Saved.IsZero() {
		text = fmt.Sprintf("the cluster's objects in use are %s old, as they were saved on this node: the API server's have not been read since the agent started",
			s.Age.Round(time.Second))
	}
	if s.Err != nil {
		text += ": " + s.Err.Error()
	}
	return text
}

// problems returns the problems of the node, its own first, and that its objects are old among them. There must be a
// node.
func (t *Teller) problems() []kube.Problem {
	shared, own := t.o.Follower.Problems()
	if text := t.oldText(); text != "" {
		own = append(own, kube.Problem{Severity: kube.Warning, Object: kube.Ref{Kind: "Node", Name: t.o.Node}, Message: text})
	}
	return append(own, shared...)
}

// lasting returns a check of what this agent cannot put right. It does not count while another agent waits for the
// node.
func (t *Teller) lasting(check func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := check(ctx)
		if err != nil && t.o.Awaited() {
			return nil
		}
		return err
	}
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
