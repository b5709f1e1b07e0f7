package kube

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOtherPod: what is kept of a pod survives a file. A pod that is on no node has no addresses, whatever its status
// says.
func TestOtherPod(t *testing.T) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b", UID: "1", Labels: map[string]string{"app": "x"}},
		Spec:       corev1.PodSpec{NodeName: "n2", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}}}},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.2.5"}}},
	}
	for node, addrs := range map[string]int{"n2": 1, "": 0} {
		p.Spec.NodeName = node
		o := OtherPodOf(p)
		if o.Node != node || len(o.Addrs) != addrs {
			t.Errorf("on node %q: %+v", node, o)
		}
		b := make([]byte, o.Size())
		if n, err := o.MarshalToSizedBuffer(b); err != nil || n != len(b) {
			t.Fatal(n, err)
		}
		var back OtherPod
		if err := back.Unmarshal(b); err != nil || !reflect.DeepEqual(&back, o) || !reflect.DeepEqual(back.DeepCopyObject(), o.DeepCopyObject()) {
			t.Errorf("%+v came back as %+v: %v", o, back, err)
		}
	}
}
