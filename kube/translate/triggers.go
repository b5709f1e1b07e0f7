package translate

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
)

// Triggers are when that happened which the EndpointSlices of the last snapshot told and those before it did not: a pod became
// ready, a Service changed. Not every slice says so. None for the first snapshot.
func (m *Translator) Triggers() []time.Time { return m.triggers }

// triggersOf compares two snapshots, both sorted.
func triggersOf(before, now *kube.Objects) []time.Time {
	var list []time.Time
	difference(before.EndpointSlices, now.EndpointSlices, compareNames, func(*discoveryv1.EndpointSlice) {}, func(s *discoveryv1.EndpointSlice) {
		if at, err := time.Parse(time.RFC3339Nano, s.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
			list = append(list, at)
		}
	})
	return list
}
