package translate_test

import (
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/translate"
)

func TestTriggers(t *testing.T) {
	slice := func(name, at string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: at}}}
	}
	same, old := slice("a", "2026-01-01T00:00:00Z"), slice("b", "2026-01-01T00:00:01Z")
	before := kube.Objects{EndpointSlices: roll.Of(same, old, slice("gone", "2026-01-01T00:00:02Z"))}
	now := kube.Objects{EndpointSlices: roll.Of(
		same, slice("b", "2026-01-01T00:01:00.5Z"), slice("new", "2026-01-01T00:02:00Z"), slice("silent", ""), slice("z-odd", "yesterday"),
	)}
	var tr translate.Translator
	tr.Translate(before, translate.Options{})
	if got := tr.Triggers(); len(got) != 0 {
		t.Errorf("the first snapshot tells of changes: %v", got)
	}
	tr.Translate(now, translate.Options{})
	got := tr.Triggers()
	want := []time.Time{time.Date(2026, 1, 1, 0, 1, 0, 5e8, time.UTC), time.Date(2026, 1, 1, 0, 2, 0, 0, time.UTC)}
	if len(got) != 2 || !got[0].Equal(want[0]) || !got[1].Equal(want[1]) {
		t.Errorf("got %v, want %v", got, want)
	}
	tr.Translate(now, translate.Options{})
	if got := tr.Triggers(); len(got) != 0 {
		t.Errorf("nothing happened, yet %v", got)
	}
}
