package cluster

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/translate"
)

// stripped returns copies of objs as they appear in a snapshot of a cluster. It records in seen which kinds occur.
func stripped(objs *kube.Objects, seen map[string]bool) kube.Objects {
	out := kube.Objects{Origin: objs.Origin}
	for _, r := range allRows() {
		s := r.newStore(func() {})
		for obj := range objs.All() {
			if kube.KindOf(obj) != r.kind {
				continue
			}
			seen[r.kind.Name] = true
			arrived := obj.DeepCopyObject()
			if r.names {
				arrived = apimeta.AsPartialObjectMetadata(obj)
			}
			r.strip(arrived)
			_ = s.Add(arrived) // Add never fails
		}
		s.put(&out)
	}
	return out
}

// A stripped object has the same meaning as the complete one.
func TestStripKeepsMeaning(t *testing.T) {
	inputs, err := filepath.Glob("../translate/testdata/*.in.yaml")
	if err != nil || len(inputs) < 5 {
		t.Fatalf("%d examples: %v", len(inputs), err)
	}
	seen := map[string]bool{}
	for _, in := range inputs {
		data, err := os.ReadFile(in)
		if err != nil {
			t.Fatal(err)
		}
		objs, err := codec.Decode(in, data)
		if err != nil {
			t.Fatal(err)
		}
		objs.Pods = append(objs.Pods, withHostPorts())
		for _, n := range objs.Nodes {
			n.Spec.Taints = []corev1.Taint{{Key: "other"}, {Key: kube.ToBeDeletedTaint, Value: "x"}}
		}
		o := translate.Options{Node: "n1"}
		less := stripped(&objs, seen)
		whole, left := translate.Translate(objs, o), translate.Translate(less, o)
		if !reflect.DeepEqual(whole, left) {
			t.Errorf("%s: what follows from the reduced objects is not what follows from the whole:\n%+v\n%+v", in, whole, left)
		}
		if !reflect.DeepEqual(translate.IngressSecrets(&objs), translate.IngressSecrets(&less)) {
			t.Errorf("%s: other Secrets are referred to", in)
		}
	}
	for _, k := range kube.Kinds() {
		if k.Use&kube.InFiles != 0 && k.Use&kube.InCluster != 0 && !seen[k.Name] {
			t.Errorf("no example of package translate has a %s: nothing shows that its strip function leaves enough", k.Name)
		}
	}
}

// withHostPorts returns a Pod that asks for hostPorts, one of them in a sidecar.
func withHostPorts() *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	ports := func(n int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{ContainerPort: 1}, {ContainerPort: 80, HostPort: n, HostIP: "127.0.0.1", Protocol: corev1.ProtocolUDP}}
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "zz", Name: "host-ports", CreationTimestamp: metav1.Unix(1, 0), DeletionTimestamp: &metav1.Time{}},
		Spec: corev1.PodSpec{
			NodeName: "n1", InitContainers: []corev1.Container{{Name: "i", Ports: ports(9000)}, {Name: "s", Ports: ports(9001), RestartPolicy: &always}},
			Containers: []corev1.Container{{Name: "a"}, {Name: "b", Image: "x", Ports: ports(9002)}, {Name: "bad", Ports: ports(70000)}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.244.1.77"}}},
	}
	return p
}
