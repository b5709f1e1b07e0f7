package control

import (
	"encoding/json"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestStatusPatch checks that a patch says what has changed, what is gone, and for which version it is.
func TestStatusPatch(t *testing.T) {
	vip := corev1.LoadBalancerIPModeVIP
	with := func(change func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", UID: "u", ResourceVersion: "7"}}
		change(s)
		return s
	}
	point := func(ip string) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip, IPMode: &vip}}
		}
	}
	none := func(*corev1.Service) {}
	for name, tc := range map[string]struct {
		old, now *corev1.Service
		status   string
	}{
		"nothing":   {with(none), with(none), `{}`},
		"comes":     {with(none), with(point("192.0.2.1")), `{"loadBalancer":{"ingress":[{"ip":"192.0.2.1","ipMode":"VIP"}]}}`},
		"goes":      {with(point("192.0.2.1")), with(none), `{"loadBalancer":{"ingress":null}}`},
		"other":     {with(point("192.0.2.1")), with(point("192.0.2.2")), `{"loadBalancer":{"ingress":[{"ip":"192.0.2.2","ipMode":"VIP"}]}}`},
		"condition": {with(none), with(func(s *corev1.Service) { s.Status.Conditions = []metav1.Condition{{Type: "x"}} }), `{"conditions":[{"lastTransitionTime":null,"message":"","reason":"","status":"","type":"x"}]}`},
	} {
		data, err := statusPatch(tc.old, tc.now)
		if err != nil {
			t.Fatal(err)
		}
		var got, want any
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(`{"metadata":{"resourceVersion":"7","uid":"u"},"status":`+tc.status+`}`), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s", name, data)
		}
	}
}
