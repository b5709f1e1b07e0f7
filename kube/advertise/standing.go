package advertise

import (
	"fmt"
	"slices"

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
	// speakers are the names of the nodes with a session, of a BGPPeer; sorted.
	speakers []string
}

// Speaks reports whether a node is one of those that have a session with a BGPPeer.
func (s *Standing) Speaks(node string) bool {
	_, there := slices.BinarySearch(s.speakers, node)
	return there
}

// standings are those of the objects of a snapshot. Whatever is said of other objects is left out.
type standings map[kube.Ref]*Standing

func (all standings) fault(of kube.Ref, reason, field, text string) {
	if s := all[of]; s != nil {
		s.fault(reason, field, text)
	}
}

func (s *Standing) fault(reason, field, text string) {
	s.Faults = append(s.Faults, field+": "+text)
	if s.Reason == "" || reason == v1alpha1.ReasonInvalid {
		s.Reason = reason
	}
}

// Standings returns the Standing of every L2Advertisement, BGPPeer and BGPAdvertisement. It reads them as agents do.
func Standings(objs *kube.Objects) map[kube.Ref]*Standing {
	out := standings{}
	for obj := range kube.ListOf[*v1alpha1.L2Advertisement](objs) {
		out[kube.RefOf(obj)] = &Standing{}
	}
	for obj := range kube.ListOf[*v1alpha1.BGPPeer](objs) {
		out[kube.RefOf(obj)] = &Standing{}
	}
	for obj := range kube.ListOf[*v1alpha1.BGPAdvertisement](objs) {
		out[kube.RefOf(obj)] = &Standing{}
	}
	out.fill(read("", objs, nil))
	return out
}

// fill says how the objects stand by what was read of them.
func (all standings) fill(r *rules) {
	for _, p := range r.say.Problems {
		reason := v1alpha1.ReasonInvalid
		if p.Field == "spec.pools" || p.Field == "spec.peers" {
			reason = v1alpha1.ReasonNotFound
		}
		all.fault(p.Object, reason, p.Field, p.Message)
	}
	for _, list := range [][]*ad{r.links, r.routes} {
		for _, a := range list {
			if s := all[a.ref]; s != nil {
				r.countAnnouncing(a, s)
			}
		}
	}
	r.countSpeaking(all)
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
func (r *rules) countSpeaking(all standings) {
	told := map[*router]bool{}
	for _, n := range r.objs.Nodes {
		if !hasAgent(n) {
			continue
		}
		for _, p := range r.speaking(labels.Set(n.Labels), func(p, first *router) {
			if !told[p] {
				told[p] = true
				all.fault(p.ref, v1alpha1.ReasonAddressTaken, "spec.address", fmt.Sprintf(isTaken, p.Address, first.Name, n.Name))
			}
		}) {
			if s := all[p.ref]; s != nil {
				s.speakers = append(s.speakers, n.Name)
			}
		}
	}
	for i := range r.routers {
		p := &r.routers[i]
		s := all[p.ref]
		if s == nil {
			continue
		}
		slices.Sort(s.speakers)
		if s.Nodes = len(s.speakers); s.Nodes == 0 && !told[p] {
			s.fault(v1alpha1.ReasonNoNode, "spec.nodeSelector", "it selects no node that runs an agent, so that nobody has a session with it: select one at least")
		}
	}
}
