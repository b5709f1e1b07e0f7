package translate

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

// leavingPods knows the pods of this node that terminate. The node hears of that from the Pod, at the same time as the
// kubelet, and so earlier than from an EndpointSlice, which a controller has to change first. It goes on knowing them
// when their Pods are gone: an EndpointSlice may still say that they are ready. No pod ever gets the UID of another.
type leavingPods struct {
	list    []*corev1.Pod
	ids     map[string]string // namespaces, by UID
	ended   []string          // UIDs of those whose Pods are gone, in that order
	version int               // moves when ids change
}

// mostEnded is how many pods are known that are gone. That is all pods of a large node, several times.
const mostEnded = 1024

// set takes the cluster's Pods. It returns the namespaces of those that have begun to terminate since the last call, by
// UID.
func (l *leavingPods) set(pods []*corev1.Pod, node string) (begun map[string]string) {
	if kube.Same(l.list, pods) {
		return nil
	}
	l.list = pods
	there := map[string]bool{}
	for _, p := range pods {
		if p.DeletionTimestamp == nil || p.Spec.NodeName != node || p.UID == "" {
			continue
		}
		id := string(p.UID)
		there[id] = true
		if _, known := l.ids[id]; known {
			continue
		}
		if begun == nil {
			begun = map[string]string{}
		}
		begun[id] = p.Namespace
	}
	if l.ids == nil {
		l.ids = map[string]string{}
	}
	maps.Copy(l.ids, begun)
	if len(begun) > 0 {
		l.version++
	}
	if len(l.ids) > len(there)+len(l.ended) {
		for id := range l.ids {
			if !there[id] && !slices.Contains(l.ended, id) {
				l.ended = append(l.ended, id)
			}
		}
	}
	for len(l.ended) > mostEnded {
		delete(l.ids, l.ended[0])
		l.version++
		l.ended = l.ended[1:]
	}
	return begun
}

// mark changes the endpoints whose pods terminate as their EndpointSlices are about to be changed (KEP-1672): they are
// not ready any more, and serve if they were ready.
func (l *leavingPods) mark(list []services.Endpoint) {
	if len(l.ids) == 0 {
		return
	}
	for i := range list {
		e := &list[i]
		if _, leaves := l.ids[e.ID]; leaves {
			e.Serving = e.Serving || e.Ready
			e.Ready, e.Terminating = false, true
		}
	}
}

// servedBy returns the names of the Services with an endpoint whose pod is in ids.
func (s *serviceStage) servedBy(ids map[string]string) (names []objectName) {
	if len(ids) == 0 {
		return nil
	}
	namespaces := map[string]bool{}
	for _, namespace := range ids {
		namespaces[namespace] = true
	}
	for name, list := range s.slices.of {
		if namespaces[name.namespace] && anyOf(list, ids) {
			names = append(names, name)
		}
	}
	return names
}

func anyOf(list []*discoveryv1.EndpointSlice, ids map[string]string) bool {
	for _, es := range list {
		for i := range es.Endpoints {
			if ref := es.Endpoints[i].TargetRef; ref != nil {
				if _, known := ids[string(ref.UID)]; known {
					return true
				}
			}
		}
	}
	return false
}
