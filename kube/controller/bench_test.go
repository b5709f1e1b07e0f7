package controller_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// BenchmarkDecide decides about 5,000 Services, of which every tenth is a load balancer that has its address.
func BenchmarkDecide(b *testing.B) {
	objs := kube.Objects{AddressPools: []*v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"198.18.0.0/16"}}}}}
	at := netip.MustParseAddr("198.18.0.0")
	for i := range 5000 {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprint("s", i)}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Port: 80}}}}
		if i%10 == 0 {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: at.String()}}
			at = at.Next()
		}
		objs.Services = append(objs.Services, s)
	}
	o := controller.Options{Default: true, Now: time.Unix(1000, 0)}
	objs, _ = controller.LoadBalancers(objs, o)
	for b.Loop() {
		controller.IngressStatus(objs)
		controller.LoadBalancers(objs, o)
	}
}
