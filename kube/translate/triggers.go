package translate

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
)

// Triggers returns the change times of EndpointSlices that are new in the last snapshot: when a pod became ready or a
// Service changed. Not every slice has one. The first snapshot has none.
func (t *Translator) Triggers() []time.Time { return t.triggers }

// since returns the Triggers of objs, which must be sorted.
func (t *Translator) since(objs *kube.Objects) (list []time.Time) {
	now := objs.EndpointSlices
	if !t.begun {
		return nil
	}
	_, come := roll.Difference(t.objs.EndpointSlices, now, compareNames)
	for _, es := range come {
		if at, err := time.Parse(time.RFC3339Nano, es.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
			list = append(list, at)
		}
	}
	return list
}
