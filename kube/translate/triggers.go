package translate

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// Triggers returns the change times of EndpointSlices that are new in the last snapshot: when a pod became ready or a
// Service changed. Not every slice has one. The first snapshot has none.
func (t *Translator) Triggers() []time.Time { return t.triggers }

// since returns the Triggers of objs, which must be sorted.
func (t *Translator) since(objs *kube.Objects) (list []time.Time) {
	now := objs.EndpointSlices
	if kube.Same(t.objs.EndpointSlices, now) || !t.begun {
		return nil
	}
	walk(t.objs.EndpointSlices, now, compareNames, func(old, i, _ int) {
		if old >= 0 {
			return
		}
		if at, err := time.Parse(time.RFC3339Nano, now[i].Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
			list = append(list, at)
		}
	})
	return list
}
