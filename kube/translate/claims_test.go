package translate

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// sharers returns the fronts of n Services that claim one port of one external address. The last of them is the oldest.
func sharers(n int) []*front {
	var list []*front
	for i := range n {
		obj := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprintf("s%06d", i), CreationTimestamp: metav1.NewTime(time.Unix(int64(1_000_000-i), 0))},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
		}
		obj.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.7"}}
		list = append(list, parseService(obj, false, new(kube.Report)))
	}
	return list
}

// Many Services claim one external address. What one of them costs does not grow with how many there are: the others
// are looked at when the owner changes, and not for each of them.
func TestManyClaimOneAddress(t *testing.T) {
	fronts := sharers(2000)
	oldest := fronts[len(fronts)-1]
	var c claims
	if stale := c.set(fronts[1:]); len(stale) > 0 {
		t.Errorf("%d Services are settled anew at first", len(stale))
	}
	if stale := c.set(fronts); len(stale) > 0 {
		t.Errorf("a Service that comes and loses has %d others settled anew", len(stale))
	}
	of := c.of
	c.of = nil // settling one Service looks at no other
	var say kube.Report
	if kept := c.settle(fronts[0], &say); len(kept.ExternalIPs) > 0 || len(say.Problems) != 1 || !strings.Contains(say.Problems[0].Message, oldest.ref().String()) {
		t.Errorf("the loser has %v and the problems %v", kept.ExternalIPs, say.Problems)
	}
	if kept := c.settle(oldest, &say); kept != oldest {
		t.Error("the owner lost something")
	}
	c.of = of
	if stale := c.set(fronts[:len(fronts)-1]); len(stale) != len(fronts)-1 {
		t.Errorf("the owner went, and %d of %d Services are settled anew", len(stale), len(fronts)-1)
	}
	if owner := c.owner(claim{addr: oldest.ExternalIPs[0], port: 80, proto: 6}); owner != fronts[len(fronts)-2] {
		t.Errorf("the next owner is %v", owner)
	}
}

// Services that come together to one address cost memory in proportion to their number.
func TestManyClaimsMemory(t *testing.T) {
	bytes := func(n int) uint64 {
		fronts := sharers(n + 1)
		var c claims
		c.set(fronts[:1])
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c.set(fronts)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	few, many := bytes(1000), bytes(8000)
	if many > 20*few {
		t.Errorf("8,000 Services cost %d bytes and 1,000 cost %d", many, few)
	}
}

// The addresses of one Service times its ports are bounded, and those left out are told.
func TestManyExternalAddresses(t *testing.T) {
	obj := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	for i := range 100 {
		obj.Spec.Ports = append(obj.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(1 + i)})
	}
	for i := range 1000 {
		obj.Status.LoadBalancer.Ingress = append(obj.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: fmt.Sprintf("203.0.%d.%d", i/250, 1+i%250)})
	}
	var say kube.Report
	f := parseService(obj, false, &say)
	if len(f.ExternalIPs) != 100 || len(f.claims) != 100+100*100 {
		t.Errorf("%d addresses and %d claims", len(f.ExternalIPs), len(f.claims))
	}
	const want = "status.loadBalancer.ingress, spec.externalIPs: they have 1000 addresses for 100 ports, and the product may be 10000: the last 900 addresses are left out; divide"
	if said := say.Problems[len(say.Problems)-1].String(); !strings.Contains(said, want) {
		t.Errorf("it says %q", said)
	}
}

// A Service that loses very many addresses says so in a few sentences.
func TestManyLostClaims(t *testing.T) {
	objs := kube.Objects{}
	for i, name := range []string{"first", "second"} {
		obj := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: fmt.Sprintf("10.96.0.%d", 1+i), Ports: []corev1.ServicePort{{Port: 80}},
		}}
		for k := range 5000 {
			obj.Status.LoadBalancer.Ingress = append(obj.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: fmt.Sprintf("203.0.%d.%d", k/250, 1+k%250)})
		}
		objs.Services = append(objs.Services, obj)
	}
	r := Translate(objs, Options{Node: "n"})
	said := 0
	for _, p := range r.Problems {
		if p.Object.Name == "second" {
			said++
		}
	}
	if said == 0 || said > 2*(mostTold+1) {
		t.Errorf("it says %d sentences", said)
	}
	if n := len(r.Services.Services.At(1).ExternalIPs); n != 0 {
		t.Errorf("it keeps %d addresses", n)
	}
}
