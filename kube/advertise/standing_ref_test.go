package advertise

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
)

// TestFaultOfNobody: what is said of an object that is not there is left out, and makes none.
func TestFaultOfNobody(t *testing.T) {
	r := rules{
		objs:    kube.Objects{Nodes: []*corev1.Node{{}}},
		routers: []router{{announce.Peer{Name: "tor"}, kube.Ref{Kind: "BGPPeer", Name: "tor"}, labels.Everything()}},
	}
	r.links = []*ad{{ref: kube.Ref{Kind: "L2Advertisement", Name: "lan"}}}
	r.say.Errorf(kube.Ref{Kind: "BGPAdvertisement", Name: "hosts"}, "spec.pools", "gone")
	r.say.Errorf(kube.Ref{}, "", "whatever")
	known := kube.Ref{Kind: "BGPPeer", Name: "known"}
	all := standings{known: &Standing{}}
	all.fill(&r)
	if s := all[known]; len(all) != 1 || len(s.Faults) != 0 || s.Nodes != 0 {
		t.Errorf("got %v, of the one that is there %+v", all, s)
	}
}
