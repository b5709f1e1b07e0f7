package advertise

import (
	"runtime"
	"testing"
	"weak"

	discoveryv1 "k8s.io/api/discovery/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
)

// A Stage keeps nothing alive of a snapshot but what it compares with the next one.
func TestStageKeepsNothingElse(t *testing.T) {
	var s Stage
	slice := new(discoveryv1.EndpointSlice)
	gone := weak.Make(slice)
	s.Of("n1", &kube.Objects{EndpointSlices: roll.Of(slice)}, roll.List[*services.Service]{}, nil, new(kube.Report))
	slice = nil
	await.Until(t, "the EndpointSlice is gone", func() bool {
		runtime.GC()
		return gone.Value() == nil
	})
	runtime.KeepAlive(&s)
}
