package controller

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/advertise"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// Announcements does what AnnounceStatus does for successive snapshots, and works it out anew only when something has
// changed that it follows from: for 1,000 Services and as many nodes that is a third of a decision. The zero value is
// ready.
type Announcements struct {
	in, out kube.Objects // no other lists than sources has
}

// sources returns the objects from which the status of announcements follows, and no others.
func sources(objs *kube.Objects) kube.Objects {
	return kube.Objects{
		Nodes: objs.Nodes, AddressPools: objs.AddressPools,
		L2Advertisements: objs.L2Advertisements, BGPPeers: objs.BGPPeers, BGPAdvertisements: objs.BGPAdvertisements,
	}
}

// Status returns what AnnounceStatus returns. Objects that are the same pointers have not changed.
func (a *Announcements) Status(objs kube.Objects, at time.Time) kube.Objects {
	in, was := sources(&objs), &a.in
	if !slices.Equal(in.Nodes, was.Nodes) || !slices.Equal(in.AddressPools, was.AddressPools) || !slices.Equal(in.L2Advertisements, was.L2Advertisements) ||
		!slices.Equal(in.BGPPeers, was.BGPPeers) || !slices.Equal(in.BGPAdvertisements, was.BGPAdvertisements) {
		a.in, a.out = in, AnnounceStatus(in, at)
	}
	objs.L2Advertisements, objs.BGPPeers, objs.BGPAdvertisements = a.out.L2Advertisements, a.out.BGPPeers, a.out.BGPAdvertisements
	return objs
}

// AnnounceStatus gives L2Advertisements, BGPPeers and BGPAdvertisements their status. It returns a new snapshot with
// changed copies of those that have another one. What is wrong with them is told as Events by the agents, who find the
// same. How sessions are is known to the nodes alone; what they report of BGPPeers that select them is repeated.
func AnnounceStatus(objs kube.Objects, at time.Time) kube.Objects {
	now := metav1.NewTime(at.Truncate(time.Second))
	standings := advertise.Standings(&objs)
	accept := func(obj kube.Object, status *v1alpha1.AnnouncementStatus) {
		s := standings[kube.RefOf(obj)]
		c := metav1.Condition{Type: v1alpha1.AnnouncementAccepted, Status: metav1.ConditionTrue, Reason: "Accepted", Message: "all of it is used"}
		if len(s.Faults) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, s.Reason, faultText(s.Faults)
		}
		status.Nodes = int64(s.Nodes)
		setCondition(&status.Conditions, c, obj.GetGeneration(), now)
	}
	objs.L2Advertisements = changed(objs.L2Advertisements, every, func(o *v1alpha1.L2Advertisement) { accept(o, &o.Status) })
	objs.BGPAdvertisements = changed(objs.BGPAdvertisements, every, func(o *v1alpha1.BGPAdvertisement) { accept(o, &o.Status) })
	said := reports(objs.Nodes, "BGPPeer", kube.SessionFault, func(of kube.Ref, node string) bool {
		s := standings[of]
		return s != nil && s.Speaks(node)
	})
	objs.BGPPeers = changed(objs.BGPPeers, every, func(o *v1alpha1.BGPPeer) {
		accept(o, &o.Status)
		c := metav1.Condition{Type: v1alpha1.PeerDegraded, Status: metav1.ConditionFalse, Reason: "NothingReported", Message: "no node reports that anything is wrong with its session"}
		if list := said[kube.RefOf(o)]; len(list) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionTrue, kube.SessionFault, "one node reports it: "+list[0]
			if n := len(list); n > 1 {
				c.Message = fmt.Sprintf("%d nodes report it: %s", n, reportText(list))
			}
		}
		setCondition(&o.Status.Conditions, c, o.Generation, now)
	})
	return objs
}
