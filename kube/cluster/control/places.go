package control

import (
	"reflect"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// EndpointSlices are the kind of which there are most and that changes most often. All that is decided by them is at
// which nodes load balancers are served that only nodes with endpoints serve. So of a slice the nodes are kept, and it
// is looked at only while its Service is such a one.

// reduceSlice leaves of a slice its Service, and each node once for each state of endpoints there.
func reduceSlice(es *discoveryv1.EndpointSlice) {
	type place struct{ node, ready, serving, terminating string }
	seen := map[place]bool{}
	var list []discoveryv1.Endpoint
	for i := range es.Endpoints {
		e := &es.Endpoints[i]
		c := e.Conditions
		if e.NodeName == nil {
			continue
		}
		if p := (place{*e.NodeName, text(c.Ready), text(c.Serving), text(c.Terminating)}); !seen[p] {
			seen[p] = true
			list = append(list, discoveryv1.Endpoint{NodeName: e.NodeName, Conditions: c})
		}
	}
	*es = discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: es.Namespace, Name: es.Name, UID: es.UID, ResourceVersion: es.ResourceVersion,
			Labels: map[string]string{discoveryv1.LabelServiceName: es.Labels[discoveryv1.LabelServiceName]},
		},
		AddressType: es.AddressType, Endpoints: list,
	}
}

// text returns a condition as a text, "" for one that is absent.
func text(b *bool) string {
	if b == nil {
		return ""
	}
	return strconv.FormatBool(*b)
}

// changed has all be decided anew when something may be decided otherwise by an object. old is nil when there was none,
// and now when there is none any longer.
func (r *reader) changed(old, now any) {
	before, was := old.(*discoveryv1.EndpointSlice)
	after, is := now.(*discoveryv1.EndpointSlice)
	switch {
	case !was && !is: // of another kind, or one of which not even the watch knows what it was
		r.touch()
	case was && is && reflect.DeepEqual(before.Endpoints, after.Endpoints) && reflect.DeepEqual(before.Labels, after.Labels):
	case was && r.decides(before) || is && r.decides(after):
		r.touch()
	}
}

// decides reports whether something is decided by a slice.
func (r *reader) decides(es *discoveryv1.EndpointSlice) bool {
	obj, there, err := r.services.GetByKey(es.Namespace + "/" + es.Labels[discoveryv1.LabelServiceName])
	svc, is := obj.(*corev1.Service)
	return err == nil && there && is && kube.LocalBalancer(svc) // a store in memory returns no errors
}
