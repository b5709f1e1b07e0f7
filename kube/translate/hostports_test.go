package translate_test

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/translate"
)

// A terminating pod loses its hostPort to a pod that stays, whichever is older.
func TestHostPortOfATerminatingPod(t *testing.T) {
	pod := func(name, ip string, created int64, going bool) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, CreationTimestamp: metav1.Unix(created, 0)},
			Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}}}},
			Status:     corev1.PodStatus{PodIP: ip},
		}
		if going {
			now := metav1.Unix(created+100, 0)
			p.DeletionTimestamp = &now
		}
		return p
	}
	for _, going := range []bool{true, false} {
		old, young := pod("old", "10.244.1.3", 1, going), pod("young", "10.244.1.4", 2, false)
		r := translate.Translate(kube.Objects{Pods: []*corev1.Pod{old, young}}, translate.Options{Node: "n1"})
		want := netip.MustParseAddrPort("10.244.1.3:80")
		if going {
			want = netip.MustParseAddrPort("10.244.1.4:80")
		}
		if len(r.Services.HostPorts) != 1 || r.Services.HostPorts[0].To != want {
			t.Errorf("going %v: %v, want %v", going, r.Services.HostPorts, want)
		}
		if told := strings.Contains(problemTexts(r.Problems), "Pod d/young: spec.containers[0].ports[0].hostPort: 8080/TCP belongs to Pod d/old"); told == going {
			t.Errorf("going %v: problems are %s", going, problemTexts(r.Problems))
		}
	}
}

func TestExternalIPs(t *testing.T) {
	objs := kube.Objects{Services: []*corev1.Service{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "s"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.3", ExternalIPs: []string{"203.0.113.9"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}}}
	for _, on := range []bool{false, true} {
		r := translate.Translate(objs, translate.Options{ExternalIPs: on})
		told := strings.Contains(problemTexts(r.Problems), "spec.externalIPs: is not honoured")
		if got := len(r.Services.Services.At(0).ExternalIPs) == 1; got != on || told == on {
			t.Errorf("asked for %v: honoured %v, told %v", on, got, told)
		}
	}
	// One of a family that the Service has not is left out, and its owner is told.
	objs.Services[0].Spec.ExternalIPs = []string{"203.0.113.9", "2001:db8::9"}
	r := translate.Translate(objs, translate.Options{ExternalIPs: true})
	if text := problemTexts(r.Problems); len(r.Services.Services.At(0).ExternalIPs) != 1 || !strings.Contains(text, `spec.externalIPs[1]: "2001:db8::9" is of a family`) {
		t.Errorf("of two families: %v, told %q", r.Services.Services.At(0).ExternalIPs, text)
	}
}
