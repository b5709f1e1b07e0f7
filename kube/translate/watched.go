package translate

import (
	"slices"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/overlay"
)

// watchStage marks the peers that this node watches, since it is next to announce their addresses.
type watchStage struct {
	peers []overlay.Peer
	plan  *announce.Plan
	made  overlay.Config
}

func (s *watchStage) of(c overlay.Config, plan *announce.Plan) overlay.Config {
	if s.plan == plan && kube.Same(s.peers, c.Peers) {
		return s.made
	}
	*s = watchStage{peers: c.Peers, plan: plan, made: c}
	watched := plan.Watched()
	if len(watched) == 0 {
		return c
	}
	s.made.Peers = slices.Clone(c.Peers)
	for i := range s.made.Peers {
		_, s.made.Peers[i].Watched = slices.BinarySearch(watched, s.made.Peers[i].Name)
	}
	return s.made
}
