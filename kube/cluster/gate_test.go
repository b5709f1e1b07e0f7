package cluster

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
)

// TestGate: who enters waits until the gate is open and its pause is over, and is told when it closes.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		turns := make(chan context.Context, 10)
		enter := func() {
			if turn, ok := g.enter(ctx); ok {
				turns <- turn
			} else {
				turns <- nil
			}
		}
		go enter()
		synctest.Wait()
		if _, open := g.isOpen(); open || len(turns) > 0 || !g.open(time.Hour) || g.open(time.Minute) {
			t.Fatal("a new gate is not closed, or was opened twice")
		}
		time.Sleep(time.Hour - time.Second)
		if synctest.Wait(); len(turns) > 0 {
			t.Error("somebody entered in the pause")
		}
		turn := <-turns
		if since, open := g.isOpen(); !open || time.Since(since) != time.Hour || turn.Err() != nil {
			t.Errorf("entered after %v, %v", time.Since(since), turn.Err())
		}
		g.close()
		if <-turn.Done(); turn.Err() == nil {
			t.Error("the turn goes on")
		}
		go enter()
		g.open(time.Hour)
		g.close() // in the pause
		if synctest.Wait(); len(turns) > 0 {
			t.Error("somebody entered a gate that was closed in the pause")
		}
		g.open(0)
		if turn = <-turns; turn == nil || turn.Err() != nil {
			t.Error("nobody entered the gate that was opened again")
		}
		g.close()
		go enter()
		synctest.Wait()
		if cancel(); <-turns != nil {
			t.Error("somebody entered a closed gate")
		}
	})
}

// TestPoliciesPause: agents begin to read all pods at different moments, the more the later, but for their first start.
func TestPoliciesPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pauses := func(nodes int, delivered bool) (most time.Duration) {
			for range 200 {
				p := newPolicies(func() {}, policiesWait, policiesRest)
				p.admit(&kube.Objects{NetworkPolicies: []*networkingv1.NetworkPolicy{networkPolicy("p")}, Nodes: make([]*corev1.Node, nodes)}, nil, delivered)
				most = max(most, p.start.Sub(p.since))
				p.close()
			}
			return most
		}
		for _, c := range []struct {
			nodes     int
			delivered bool
			from, to  time.Duration
		}{
			{1000, true, pauseMost / 2, pauseMost}, {100_000, true, pauseMost / 2, pauseMost}, {10, true, 1, 10 * pausePerNode}, {0, true, 0, 0}, {1000, false, 0, 0},
		} {
			if got := pauses(c.nodes, c.delivered); got < c.from || got > c.to {
				t.Errorf("%d nodes, delivered %v: the longest pause is %v", c.nodes, c.delivered, got)
			}
		}
	})
}
