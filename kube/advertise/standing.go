package advertise

import (
	"fmt"

	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// Standing is how an L2Advertisement, a BGPPeer or a BGPAdvertisement stands by the objects of the cluster alone,
// whatever announcers there are.
type Standing struct {
	// Nodes is how many nodes with an agent it selects. Those that an advertisement may not have announce are not
	// counted, nor those that have another router at the address of a BGPPeer.
	Nodes int
	// Faults are sentences, each with its field before it, in no order that matters. None: all of it is used.
	Faults []string
	// Reason is that of the gravest fault, one of package v1alpha1, and "" when there is none.
	Reason string
}

func (s *Standing) fault(reason, field, text string) {
	s.Faults = append(s.Faults, field+": "+text)
	if s.Reason == "" || reason == v1alpha1.ReasonInvalid {
		s.Reason = reason
	}
}

// Standings returns the Standing of every L2Advertisement, BGPPeer and BGPAdvertisement. It reads them as agents do.
func Standings(objs *kube.Objects) map[kube.Ref]*Standing {
	r := read("", objs, nil)
	out := map[kube.Ref]*Standing{}
	for obj := range kube.ListOf[*v1alpha1.L2Advertisement](objs) {
		out[kube.RefOf(obj)] = &Standing{}
	}
	for obj := range kube.ListOf[*v1alpha1.BGPPeer](objs) {
		out[kube.RefOf(obj)] = &Standing{}
	}
	for obj := range kube.ListOf[*v1alpha1.BGPAdvertisement](objs) {
		out[kube.RefOf(obj)] = &Standing{}
	}
	for _, p := range r.say.Problems {
		reason := v1alpha1.ReasonInvalid
		if p.Field == "spec.pools" || p.Field == "spec.peers" {
			reason = v1alpha1.ReasonNotFound
		}
		out[p.Object].fault(reason, p.Field, p.Message)
	}
	for _, list := range [][]*ad{r.links, r.routes} {
		for _, a := range list {
			r.countAnnouncing(a, out[a.ref])
		}
	}
	r.countSpeaking(out)
	return out
}

// countAnnouncing counts the nodes that an advertisement has announce.
func (r *rules) countAnnouncing(a *ad, s *Standing) {
	selected := r.selected([]*ad{a})
	for i := range selected {
		if !selected[i].Excluded {
			s.Nodes++
		}
	}
	if s.Nodes == 0 {
		s.fault(v1alpha1.ReasonNoNode, "spec.nodeSelector", "it selects no node that runs an agent and may announce load balancers, so that nothing is announced by it: select one at least")
	}
}

// countSpeaking counts the nodes that have sessions with routers.
func (r *rules) countSpeaking(out map[kube.Ref]*Standing) {
	told := map[*router]bool{}
	for _, n := range r.objs.Nodes {
		if !hasAgent(n) {
			continue
		}
		for _, p := range r.speaking(labels.Set(n.Labels), func(p, first *router) {
			if !told[p] {
				told[p] = true
				out[p.ref()].fault(v1alpha1.ReasonAddressTaken, "spec.address", fmt.Sprintf(isTaken, p.Address, first.Name, n.Name))
			}
		}) {
			out[p.ref()].Nodes++
		}
	}
	for i := range r.routers {
		if p := &r.routers[i]; out[p.ref()].Nodes == 0 && !told[p] {
			out[p.ref()].fault(v1alpha1.ReasonNoNode, "spec.nodeSelector", "it selects no node that runs an agent, so that nobody has a session with it: select one at least")
		}
	}
}
