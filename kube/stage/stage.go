package stage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
)

// Ports of the test.
const (
	// ServerPort is the port on which the servers answer, over TCP and UDP.
	ServerPort = 9000
	// ServicePort is the port of the Services, for TCP and UDP.
	ServicePort = 81
)

// agents selects the pods whose image is used when the options name none.
const agents = "app.kubernetes.io/name=tapestry,app.kubernetes.io/component=agent"

// Options of Setup.
type Options struct {
	// Kubeconfig is the path of a kubeconfig; "" means KUBECONFIG or the pod's own service account.
	Kubeconfig string
	// Image is an image that contains this program at the path Program; "" means the agents' image.
	Image   string
	Program string
	// Say is called with each step that Setup waits for; it may be nil.
	Say func(string)
}

// Stage is a set of pods and Services for a test. Close removes it.
type Stage struct {
	Namespace string
	Nodes     []Node // one or two
	Pods      map[string]Pod
	Services  map[string]Service

	client  *client
	options Options
}

// Node is a node of the cluster.
type Node struct {
	Name  string
	Addrs []netip.Addr
}

// Pod is a pod of the Stage.
type Pod struct {
	Node        string
	Addrs       []netip.Addr
	HostNetwork bool
}

// Service is a Service of the Stage. TCP and UDP are its node ports.
type Service struct {
	Addrs    []netip.Addr
	TCP, UDP uint16
}

// Setup makes a Stage and waits until all of its pods are ready. When it fails, it removes what it has made.
func Setup(ctx context.Context, o Options) (*Stage, error) {
	c, err := newClient(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	s := &Stage{client: c, options: o, Pods: map[string]Pod{}, Services: map[string]Service{}}
	if s.Nodes, err = s.chooseNodes(ctx); err != nil {
		return nil, err
	}
	if err := s.findImage(ctx); err != nil {
		return nil, err
	}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// chooseNodes returns the first two nodes that accept pods.
func (s *Stage) chooseNodes(ctx context.Context) ([]Node, error) {
	var list corev1.NodeList
	if err := s.client.list(ctx, "", "nodes", "", &list); err != nil {
		return nil, err
	}
	nodes := usableNodes(list.Items)
	if len(nodes) == 0 {
		return nil, fmt.Errorf("none of %d nodes is Ready and takes pods: see kubectl get nodes", len(list.Items))
	}
	return nodes[:min(2, len(nodes))], nil
}

func usableNodes(list []corev1.Node) []Node {
	var nodes []Node
	for i := range list {
		n := &list[i]
		ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		tainted := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule })
		if !ready || n.Spec.Unschedulable || tainted {
			continue
		}
		node := Node{Name: n.Name}
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				node.Addrs = append(node.Addrs, ip.Unmap())
			}
		}
		nodes = append(nodes, node)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// findImage takes the image of a running agent, and the path of the program in it, unless the options name an image.
func (s *Stage) findImage(ctx context.Context) error {
	if s.options.Image == "" {
		var list corev1.PodList
		if err := s.client.list(ctx, "", "pods", agents, &list); err != nil {
			return err
		}
		for i := range list.Items {
			for _, c := range list.Items[i].Spec.Containers {
				if c.Name == "agent" && len(c.Command) > 0 {
					s.options.Image, s.options.Program = c.Image, cmp.Or(s.options.Program, c.Command[0])
				}
			}
		}
		if s.options.Image == "" {
			return fmt.Errorf("no agent runs in the cluster (no pod has the labels %s): name an image with --image", agents)
		}
	}
	s.options.Program = cmp.Or(s.options.Program, "/tapestry")
	return nil
}

func (s *Stage) build(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "tapestry-test-",
		// One of the pods is on the host's network, which the stricter levels forbid.
		Labels: map[string]string{"pod-security.kubernetes.io/enforce": "privileged"},
	}}
	if err := s.client.create(ctx, "namespaces", ns); err != nil {
		return err
	}
	s.Namespace = ns.Name
	s.options.Say("made namespace " + ns.Name)
	first, last := s.Nodes[0].Name, s.Nodes[len(s.Nodes)-1].Name
	for _, p := range []*corev1.Pod{
		s.pod("client", first, false), s.pod("near", first, true), s.pod("host", first, false),
	} {
		if p.Name == "host" {
			p.Spec.HostNetwork = true
			p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
		}
		if err := s.client.create(ctx, "pods", p); err != nil {
			return err
		}
	}
	names := []string{"near"}
	if first != last {
		names = append(names, "far")
		if err := s.client.create(ctx, "pods", s.pod("far", last, true)); err != nil {
			return err
		}
	}
	for _, name := range append(names, "both") {
		obj := service(name, s.Namespace)
		if err := s.client.create(ctx, "services", obj); err != nil {
			return err
		}
		svc := Service{TCP: uint16(obj.Spec.Ports[0].NodePort), UDP: uint16(obj.Spec.Ports[1].NodePort)}
		for _, text := range obj.Spec.ClusterIPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				svc.Addrs = append(svc.Addrs, ip.Unmap())
			}
		}
		s.Services[name] = svc
	}
	return s.wait(ctx)
}

// Arguments returns the arguments, after the program, with which a pod of that name is started. A server answers on
// ServerPort; the other pods only wait for commands.
func Arguments(name string, serves bool) []string {
	if !serves {
		return []string{"pause"}
	}
	port := fmt.Sprint(ServerPort)
	return []string{"connectivity-test", "serve", "--name", name, "--tcp", port, "--udp", port}
}

// pod returns a pod that serves, or that only waits for commands.
func (s *Stage) pod(name, node string, serves bool) *corev1.Pod {
	no, yes, user := false, true, int64(65532)
	var ready *corev1.Probe
	labels := map[string]string{"app": name}
	if serves {
		ready = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(ServerPort)}}}
		labels["server"] = "yes"
	}
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
					Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node},
				}}}},
			}}},
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "test", Image: s.options.Image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: append([]string{s.options.Program}, Arguments(name, serves)...), ReadinessProbe: ready,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// service returns a Service of type NodePort over the pods of that name, or over all servers for "both".
func service(name, namespace string) *corev1.Service {
	dual, selector := corev1.IPFamilyPolicyPreferDualStack, map[string]string{"app": name}
	if name == "both" {
		selector = map[string]string{"server": "yes"}
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &dual, Selector: selector,
			Ports: []corev1.ServicePort{
				{Name: "line", Port: ServicePort, TargetPort: intstr.FromInt32(ServerPort)},
				{Name: "datagram", Port: ServicePort, TargetPort: intstr.FromInt32(ServerPort), Protocol: corev1.ProtocolUDP},
			},
		},
	}
}

// pollTime is the interval at which wait looks at the pods.
const pollTime = 500 * time.Millisecond

// wait waits until all pods are ready, and records their addresses.
func (s *Stage) wait(ctx context.Context) error {
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	said := ""
	for {
		var list corev1.PodList
		if err := s.client.list(ctx, s.Namespace, "pods", "", &list); err != nil {
			return err
		}
		missing := unready(list.Items)
		if missing == "" {
			for i := range list.Items {
				s.learn(&list.Items[i])
			}
			return nil
		}
		if missing != said {
			s.options.Say("waiting for " + missing)
			said = missing
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", missing, ctx.Err())
		}
	}
}

func (s *Stage) learn(obj *corev1.Pod) {
	p := Pod{Node: obj.Spec.NodeName, HostNetwork: obj.Spec.HostNetwork}
	for _, text := range kube.PodIPs(obj) {
		if ip, err := netip.ParseAddr(text); err == nil {
			p.Addrs = append(p.Addrs, ip.Unmap())
		}
	}
	s.Pods[obj.Name] = p
}

// unready names the pods that are not ready, and why; "" when there are none.
func unready(list []corev1.Pod) string {
	var out []string
	for i := range list {
		p := &list[i]
		ready := false
		why := string(p.Status.Phase)
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				ready = c.Status == corev1.ConditionTrue
			}
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				why = c.Message
			}
		}
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil {
				why = strings.TrimSpace(w.Reason + " " + w.Message)
			}
		}
		if !ready {
			out = append(out, fmt.Sprintf("pod %s (%s)", p.Name, why))
		}
	}
	return strings.Join(out, ", ")
}

// Exec runs this program with args in a pod, and returns what it printed.
func (s *Stage) Exec(ctx context.Context, pod string, args ...string) (string, error) {
	stdout, stderr, err := s.client.exec(ctx, s.Namespace, pod, append([]string{s.options.Program}, args...))
	if err != nil {
		return stdout, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr))
	}
	return stdout, nil
}

// Close deletes the namespace. It does not wait for the deletion to finish.
func (s *Stage) Close(ctx context.Context) error {
	if s.Namespace == "" {
		return nil
	}
	if err := s.client.rest.Delete().Resource("namespaces").Name(s.Namespace).Do(ctx).Error(); err != nil {
		return fmt.Errorf("delete namespace %s: %w", s.Namespace, err)
	}
	return nil
}
