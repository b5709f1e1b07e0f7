package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/kube/controlplane"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/test/lab/kubelet"
)

// Service has what a status shows of a Service.
type Service struct {
	Namespace, Name, Type string
	ClusterIPs            []string
	Outside               []string // of its load balancer
	Ports                 []string // "80/TCP", "80:30080/TCP" with a NodePort
	Ready, Endpoints      int
}

// Ingress has what a status shows of an Ingress.
type Ingress struct {
	Namespace, Name string
	Hosts           []string // "*" for any
	Addrs           []string // where it is served; none when it has another class
}

// Snapshot returns the objects with the pods in the states of statuses, whose keys are UIDs.
func (c *Cluster) Snapshot(statuses map[string]kubelet.Status) kube.Objects {
	out := c.objects.Clone()
	out.Pods = out.Pods[:0:0]
	shown := map[string]bool{}
	for id, pod := range c.leaving {
		// The old incarnation keeps the name until nothing is left of it.
		if st, ok := statuses[id]; ok && !st.Gone {
			out.Pods = append(out.Pods, withStatus(pod, st))
			shown[podKey(pod)] = true
		}
	}
	for key, pod := range c.current {
		if !shown[key] {
			out.Pods = append(out.Pods, withStatus(pod, statuses[string(pod.UID)]))
		}
	}
	out.Sort()
	out.EndpointSlices = roll.From(append(out.EndpointSlices.Slice(), controlplane.EndpointSlices(out.Pods, out.Services)...))
	out.Sort()
	if slices.ContainsFunc(out.Services, kube.LocalBalancer) { // they were decided about before there were endpoints
		out, _ = controller.LoadBalancers(out, controller.Options{Default: true, Now: time.Now()})
	}
	return controller.IngressStatus(out)
}

// MTU returns the MTU of pods over an underlay of the given MTU, both in bytes.
func (c *Cluster) MTU(underlay int) int {
	for _, n := range c.Nodes {
		if !n.External {
			return translate.Translate(c.objects, translate.Options{Node: n.Name, UnderlayMTU: underlay}).Netstack.MTU
		}
	}
	return underlay
}

// Ranges returns the cluster's ranges. Instead of nodes' ranges that lie in the one that Nodes are given theirs from,
// it returns that one.
func (c *Cluster) Ranges() translate.Ranges {
	r := translate.Ranges{Services: slices.Clone(c.ServiceCIDRs)}
	for _, n := range c.Nodes {
		for _, p := range n.PodCIDRs {
			if i := slices.IndexFunc(podRanges, func(all netip.Prefix) bool { return addressing.Within([]netip.Prefix{all}, p) }); i >= 0 {
				p = podRanges[i]
			}
			r.Pods = append(r.Pods, p)
		}
	}
	r.Pods = addressing.Outermost(r.Pods)
	return r
}

// withStatus returns a copy of the pod with the state st.
func withStatus(pod *corev1.Pod, st kubelet.Status) *corev1.Pod {
	out := *pod
	s := *pod.Status.DeepCopy()
	s.Phase = corev1.PodPending
	if st.Phase != "" {
		s.Phase = corev1.PodPhase(st.Phase)
	}
	s.Message = st.Message
	if !st.Started.IsZero() {
		at := metav1.NewTime(st.Started)
		s.StartTime = &at
	}
	if st.Terminating {
		at := metav1.NewTime(st.Stopped)
		out.DeletionTimestamp = &at
		out.DeletionGracePeriodSeconds = pod.Spec.TerminationGracePeriodSeconds
	}
	s.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		{Type: corev1.PodInitialized, Status: condition(st.Initialized)},
		{Type: corev1.ContainersReady, Status: condition(st.Ready)},
		{Type: corev1.PodReady, Status: condition(st.Ready)},
	}
	s.ContainerStatuses, s.InitContainerStatuses = nil, nil
	for _, cs := range st.Containers {
		if cs.Init {
			s.InitContainerStatuses = append(s.InitContainerStatuses, containerStatus(cs))
		} else {
			s.ContainerStatuses = append(s.ContainerStatuses, containerStatus(cs))
		}
	}
	out.Status = s
	return &out
}

func condition(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

func containerStatus(cs kubelet.ContainerStatus) corev1.ContainerStatus {
	out := corev1.ContainerStatus{Name: cs.Name, Ready: cs.Ready, RestartCount: int32(cs.Restarts), Started: &cs.Running}
	switch {
	case cs.Running:
		out.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(cs.Started)}
	case cs.Exited && cs.Message == "":
		out.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: int32(cs.ExitCode)}
	default:
		out.State.Waiting = &corev1.ContainerStateWaiting{Message: cs.Message}
	}
	return out
}

// Pod has what a status shows of a pod.
type Pod struct {
	Namespace, Name, UID, Node string
	Addrs                      []netip.Addr
}

// PodList lists the pods of a snapshot.
func PodList(snapshot kube.Objects) []Pod {
	var out []Pod
	for _, p := range snapshot.Pods {
		pod := Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				pod.Addrs = append(pod.Addrs, a)
			}
		}
		out = append(out, pod)
	}
	return out
}

// ServiceList lists the Services of a snapshot.
func ServiceList(snapshot kube.Objects) []Service {
	type count struct{ ready, all map[string]bool }
	counts := map[string]count{}
	for _, s := range snapshot.EndpointSlices.All() {
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		c, ok := counts[key]
		if !ok {
			c = count{map[string]bool{}, map[string]bool{}}
			counts[key] = c
		}
		for _, e := range s.Endpoints {
			// To a reader a dual-stack pod is one endpoint.
			name := e.Addresses[0]
			if e.TargetRef != nil {
				name = string(e.TargetRef.UID)
			}
			c.all[name] = true
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				c.ready[name] = true
			}
		}
	}
	var out []Service
	for _, s := range snapshot.Services {
		c := counts[serviceKey(s)]
		svc := Service{Namespace: s.Namespace, Name: s.Name, Type: string(s.Spec.Type), ClusterIPs: s.Spec.ClusterIPs, Ready: len(c.ready), Endpoints: len(c.all)}
		for _, at := range s.Status.LoadBalancer.Ingress {
			svc.Outside = append(svc.Outside, cmp.Or(at.IP, at.Hostname))
		}
		for _, p := range s.Spec.Ports {
			text := strconv.Itoa(int(p.Port))
			if p.NodePort != 0 {
				text += ":" + strconv.Itoa(int(p.NodePort))
			}
			svc.Ports = append(svc.Ports, text+"/"+string(p.Protocol))
		}
		out = append(out, svc)
	}
	return out
}

// IngressList lists the Ingresses of a snapshot.
func IngressList(snapshot kube.Objects) []Ingress {
	var out []Ingress
	for _, obj := range snapshot.Ingresses {
		ing := Ingress{Namespace: obj.Namespace, Name: obj.Name}
		if obj.Spec.DefaultBackend != nil {
			ing.Hosts = append(ing.Hosts, "*")
		}
		for _, rule := range obj.Spec.Rules {
			if host := cmp.Or(rule.Host, "*"); !slices.Contains(ing.Hosts, host) {
				ing.Hosts = append(ing.Hosts, host)
			}
		}
		for _, at := range obj.Status.LoadBalancer.Ingress {
			ing.Addrs = append(ing.Addrs, cmp.Or(at.IP, at.Hostname))
		}
		out = append(out, ing)
	}
	return out
}
