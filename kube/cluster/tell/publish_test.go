package tell

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

func TestShorten(t *testing.T) {
	p := kube.Problem{Severity: kube.Warning, Message: strings.Repeat("x", 1000)}
	list := slices.Repeat([]kube.Problem{p}, 200)
	st := kube.NodeStatus{Problems: shorten(list)}
	if n := len(st.Annotations()[kube.ProblemsAnnotation]); n > problemBytes+1000 || n < problemBytes/2 {
		t.Errorf("%d bytes", n)
	}
	if last := st.Problems[len(st.Problems)-1]; !strings.Contains(last.Message, "more problems") {
		t.Errorf("the last is %v", last)
	}
	if len(shorten(list[:3])) != 3 {
		t.Error("a short list was cut")
	}
}

// TestPatches checks which changes are sent so that a Node shows the desired state.
func TestPatches(t *testing.T) {
	node := func(key, features string, unavailable corev1.ConditionStatus) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"other": "x", kube.ProblemsAnnotation: "[]"}}}
		for k, v := range map[string]string{kube.PublicKeyAnnotation: key, kube.FeaturesAnnotation: features} {
			if v != "" {
				n.Annotations[k] = v
			}
		}
		if unavailable != "" {
			c := condition(&kube.NodeStatus{Ready: unavailable == corev1.ConditionFalse, Reason: "broken"})
			c.LastTransitionTime, c.LastHeartbeatTime = metav1.Unix(1, 0), metav1.Unix(2, 0)
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}, c}
		}
		return n
	}
	for what, tc := range map[string]struct {
		have        *corev1.Node
		want        kube.NodeStatus
		annotations string // the changes: + set, - removed
		condition   corev1.ConditionStatus
	}{
		"nothing":              {node("k", "f", corev1.ConditionFalse), kube.NodeStatus{PublicKey: "k", Features: []string{"f"}, Ready: true}, "", ""},
		"everything":           {node("", "", ""), kube.NodeStatus{PublicKey: "k", Features: []string{"f"}, Ready: true}, "+features +wireguard-public-key", corev1.ConditionFalse},
		"another key":          {node("k", "", corev1.ConditionFalse), kube.NodeStatus{PublicKey: "l", Ready: true}, "+wireguard-public-key", ""},
		"a feature less":       {node("k", "f", corev1.ConditionFalse), kube.NodeStatus{PublicKey: "k", Ready: true}, "-features", ""},
		"broken":               {node("k", "", corev1.ConditionFalse), kube.NodeStatus{PublicKey: "k", Reason: "broken"}, "", corev1.ConditionTrue},
		"still broken":         {node("k", "", corev1.ConditionTrue), kube.NodeStatus{PublicKey: "k", Reason: "broken"}, "", ""},
		"broken otherwise":     {node("k", "", corev1.ConditionTrue), kube.NodeStatus{PublicKey: "k", Reason: "more so"}, "", corev1.ConditionTrue},
		"not known yet":        {node("k", "", corev1.ConditionFalse), kube.NodeStatus{PublicKey: "k"}, "", ""},
		"not known, never was": {node("k", "", ""), kube.NodeStatus{PublicKey: "k"}, "", ""},
	} {
		p := patchesFor(tc.have, &tc.want)
		var list []string
		for k, v := range p.annotations {
			sign := "+"
			if v == nil {
				sign = "-"
			}
			list = append(list, sign+strings.TrimPrefix(k, "tapestry.dev/"))
		}
		slices.Sort(list)
		got := corev1.ConditionStatus("")
		if p.condition != nil {
			got = p.condition.Status
		}
		if strings.Join(list, " ") != tc.annotations || got != tc.condition {
			t.Errorf("%s: annotations %q, condition %q; want %q, %q", what, list, got, tc.annotations, tc.condition)
		}
	}
}
