package tell

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
)

// A user makes thousands of mistakes in one namespace. The problem of a Service in another namespace still appears as
// an Event and on the Node, and the problem of an EndpointSlice appears on the EndpointSlice.
func TestInTurns(t *testing.T) {
	objs := &kube.Objects{Nodes: []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{kube.PublicKeyAnnotation: "k"}}}}}
	var list []kube.Problem
	for i := range 5000 {
		es := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "evil", Name: fmt.Sprintf("s%04d", i), UID: types.UID(fmt.Sprint("uid", i))}}
		objs.EndpointSlices = objs.EndpointSlices.Append(es)
		list = append(list, kube.Problem{Severity: kube.Error, Object: kube.RefOf(es), Message: "wrong: " + strings.Repeat("x", 100)})
	}
	web := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "web"}}
	objs.Services = []*corev1.Service{web}
	wanted := kube.Problem{Severity: kube.Warning, Object: kube.RefOf(web), Message: "needs help"}
	list = append(list, wanted)

	r := NewReporter("tapestry.dev/agent", "n1", nil, nil, slog.New(slog.DiscardHandler))
	r.Want(objs, list, nil)
	byKind := map[string]int{}
	for _, e := range r.events {
		byKind[e.InvolvedObject.Kind+" of "+e.InvolvedObject.APIVersion]++
	}
	if byKind["Service of v1"] != 1 || byKind["EndpointSlice of discovery.k8s.io/v1"] != mostEvents-1 {
		t.Errorf("told are %v", byKind)
	}
	short := shorten(list)
	if len(short) >= len(list) || !slices.Contains(short, wanted) {
		t.Errorf("the Node says %d of %d problems, and not %v", len(short), len(list), wanted)
	}
}
