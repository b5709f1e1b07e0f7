package pools_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pools"
)

// sharer is a Service in one line that was given an address, unless that is "", at which others may be. Its key is now
// another one perhaps.
func sharer(name, key string, port int, spec, addr string) string {
	meta, status := "", ""
	if key != "" {
		meta = fmt.Sprintf(", annotations: {%s: %s}", kube.SharedAddressAnnotation, key)
	}
	if addr != "" {
		status = fmt.Sprintf("{ip: %s, ports: [{port: %d, protocol: TCP}]}", addr, port)
	}
	return fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: %s%s}, spec: {type: LoadBalancer, ports: [{port: %d}]%s}, status: {loadBalancer: {ingress: [%s]}}}`,
		name, meta, port, spec, status)
}

// Services that were given one address together, and then say different things of it, all stay there, and all are told.
// Nobody joins them meanwhile.
func TestApart(t *testing.T) {
	const at, onB = "192.0.2.1", ", selector: {app: b}, externalTrafficPolicy: Local"
	a := pool("a", "addresses: [192.0.2.0/30]")
	for name, tc := range map[string]struct {
		docs  []string
		want  string
		apart string // who is told
	}{
		"together":                      {[]string{sharer("x", "k", 80, "", at), sharer("y", "k", 443, "", at)}, "x=192.0.2.1 y=192.0.2.1", ""},
		"the older has another key":     {[]string{sharer("x", "l", 80, "", at), sharer("y", "k", 443, "", at)}, "x=192.0.2.1 y=192.0.2.1", "x y"},
		"the younger has another key":   {[]string{sharer("x", "k", 80, "", at), sharer("y", "l", 443, "", at)}, "x=192.0.2.1 y=192.0.2.1", "x y"},
		"the older has no key":          {[]string{sharer("x", "", 80, "", at), sharer("y", "k", 443, "", at)}, "x=192.0.2.1 y=192.0.2.1", "x y"},
		"none has a key":                {[]string{sharer("x", "", 80, "", at), sharer("y", "", 443, "", at)}, "x=192.0.2.1 y=192.0.2.1", "x y"},
		"the older is Local":            {[]string{sharer("x", "k", 80, onB, at), sharer("y", "k", 443, "", at)}, "x=192.0.2.1 y=192.0.2.1", "x y"},
		"the middle one has another":    {[]string{sharer("w", "k", 80, "", at), sharer("x", "l", 81, "", at), sharer("y", "k", 82, "", at)}, "w=192.0.2.1 x=192.0.2.1 y=192.0.2.1", "w x y"},
		"the last one has another":      {[]string{sharer("w", "k", 80, "", at), sharer("x", "k", 81, "", at), sharer("y", "l", 82, "", at)}, "w=192.0.2.1 x=192.0.2.1 y=192.0.2.1", "w x y"},
		"a newcomer with the old key":   {[]string{sharer("x", "l", 80, "", at), sharer("y", "k", 443, "", at), sharer("z", "k", 81, "", "")}, "x=192.0.2.1 y=192.0.2.1 z=192.0.2.0", "x y"},
		"a newcomer with the new key":   {[]string{sharer("x", "l", 80, "", at), sharer("y", "k", 443, "", at), sharer("z", "l", 81, "", "")}, "x=192.0.2.1 y=192.0.2.1 z=192.0.2.0", "x y"},
		"a newcomer asks for it":        {[]string{sharer("x", "l", 80, "", at), sharer("y", "k", 443, "", at), sharer("z", "k", 81, ", loadBalancerIP: "+at, "")}, "x=192.0.2.1 y=192.0.2.1 z=!AddressTaken", "x y"},
		"both have another":             {[]string{sharer("x", "l", 80, "", at), sharer("y", "l", 443, "", at), sharer("z", "l", 81, "", "")}, "x=192.0.2.1 y=192.0.2.1 z=192.0.2.1", ""},
		"the older asks for another":    {[]string{sharer("x", "l", 80, ", loadBalancerIP: 192.0.2.2", at), sharer("y", "k", 443, "", at)}, "x=192.0.2.2 y=192.0.2.1", ""},
		"the older wants the other's":   {[]string{strings.Replace(sharer("x", "l", 80, "", at), "spec: {type: LoadBalancer, ports: [{port: 80}]", "spec: {type: LoadBalancer, ports: [{port: 443}]", 1), sharer("y", "k", 443, "", at)}, "x=192.0.2.0 y=192.0.2.1", ""},
		"given to two who never shared": {[]string{svc("x", "", "", at), svc("y", port, "", at)}, "x=192.0.2.1 y=192.0.2.0", ""},
		"to one who never shared it":    {[]string{svc("x", "", "", at), sharer("y", "k", 443, "", at)}, "x=192.0.2.1 y=192.0.2.0", ""},
		"of another namespace":          {[]string{sharer("x", "k", 80, "", at), strings.Replace(sharer("y", "k", 443, "", at), "{name: y", "{namespace: shop, name: y", 1)}, "x=192.0.2.1 y=192.0.2.0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			plan := pools.Assign(objects(t, append([]string{a}, tc.docs...)...), true)
			if got := show(plan); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			var told, said []string
			for _, s := range plan.Services {
				if s.Apart == "" {
					continue
				}
				told = append(told, s.Service.Name)
				if !s.Shared || !strings.Contains(s.Apart, at+" is shared with Service default/") {
					t.Errorf("%s: shared is %t, and told is %q", s.Service.Name, s.Shared, s.Apart)
				}
			}
			for _, p := range plan.Problems {
				if strings.Contains(p.String(), "no longer say the same") {
					said = append(said, p.Object.Name)
				}
			}
			if got, events := strings.Join(told, " "), strings.Join(said, " "); got != tc.apart || len(said) != len(told) {
				t.Errorf("told are %q, by problems %q, want %q", got, events, tc.apart)
			}
		})
	}
}

// A key is renamed on one Service after the other, as an apply of several does it: the address stays with all of them.
func TestKeyIsRenamed(t *testing.T) {
	docs := []string{pool("a", "addresses: [192.0.2.0/30]"), sharer("x", "k", 80, "", ""), sharer("y", "k", 81, "", ""), sharer("z", "k", 82, "", "")}
	objs := objects(t, docs...)
	decide := func() string {
		t.Helper()
		plan := pools.Assign(objs, true)
		objs.Services = nil
		for _, a := range plan.Services {
			s := a.Service.DeepCopy()
			s.Status.LoadBalancer.Ingress = nil
			for i, addr := range a.Addrs {
				in := corev1.LoadBalancerIngress{IP: addr.String()}
				if a.Shared && i == 0 {
					in.Ports = []corev1.PortStatus{{Port: s.Spec.Ports[0].Port, Protocol: corev1.ProtocolTCP}}
				}
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, in)
			}
			objs.Services = append(objs.Services, s)
		}
		return show(plan)
	}
	const all = "x=192.0.2.0 y=192.0.2.0 z=192.0.2.0"
	if got := decide(); got != all {
		t.Fatalf("at first: %s", got)
	}
	for _, key := range []string{"l", "", "k"} {
		for i := range 3 {
			objs.Services[i].Annotations = map[string]string{kube.SharedAddressAnnotation: key}
			for range 2 {
				if got := decide(); got != all {
					t.Errorf("%d have the key %q: %s", i+1, key, got)
				}
			}
		}
	}
}
