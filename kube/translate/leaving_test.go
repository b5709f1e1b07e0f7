package translate

import (
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
)

// A pod of this node that terminates leaves its Services as soon as its Pod says so, whatever the EndpointSlices say. A
// pod of another node leaves by its EndpointSlice.
func TestOwnPodTerminates(t *testing.T) {
	pod := func(name, node string, terminates bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: node}}
		p.Status.PodIP = map[string]string{"here": "10.244.1.3", "there": "10.244.2.3"}[name]
		if terminates {
			p.DeletionTimestamp = &metav1.Time{}
		}
		return p
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "d", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
	}
	for _, p := range []*corev1.Pod{pod("here", "n1", false), pod("there", "n2", false)} {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.Status.PodIP}, NodeName: &p.Spec.NodeName, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: p.Name, UID: p.UID},
		})
	}
	service := func(name string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}},
		}
	}
	var m Translator
	states := func(objs kube.Objects) (list []string) {
		for _, s := range m.Translate(objs, Options{Node: "n1"}).Services.Services.All() {
			for _, e := range s.Endpoints {
				state := e.ID
				for word, is := range map[string]bool{" ready": e.Ready, " serving": e.Serving, " terminating": e.Terminating} {
					if is {
						state += word
					}
				}
				list = append(list, state)
			}
		}
		return list
	}
	objs := kube.Objects{
		Services: []*corev1.Service{service("web")}, EndpointSlices: roll.Of(slice),
		Pods: []*corev1.Pod{pod("here", "n1", false), pod("there", "n2", false)},
	}
	has := func(list []string, want string, words ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			n := len(want)
			for _, w := range words {
				n += 1 + len(w)
			}
			return s[:len(want)] == want && len(s) == n
		})
	}
	if got := states(objs); !has(got, "here", "ready", "serving") || !has(got, "there", "ready", "serving") {
		t.Errorf("before: %v", got)
	}
	objs.Pods = []*corev1.Pod{pod("here", "n1", true), pod("there", "n2", true)}
	if got := states(objs); !has(got, "here", "serving", "terminating") || !has(got, "there", "ready", "serving") {
		t.Errorf("both terminate: %v", got)
	}
	objs.Pods = []*corev1.Pod{pod("there", "n2", true)}
	if got := states(objs); !has(got, "here", "serving", "terminating") {
		t.Errorf("gone, and nobody has said so in the slice: %v", got)
	}
	objs.Services = []*corev1.Service{service("again")}
	slice = slice.DeepCopy()
	slice.Labels[discoveryv1.LabelServiceName] = "again"
	objs.EndpointSlices = roll.Of(slice)
	if got := states(objs); !has(got, "here", "serving", "terminating") {
		t.Errorf("gone, and another Service has it: %v", got)
	}
}
