package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/test/lab/kubelet"
	"tapestry.dev/tapestry/test/lab/plan/container"
)

// clusterDomain is the zone of the cluster DNS.
const clusterDomain = "cluster.local"

// defaultPod fills in what an API server fills in, as far as the lab uses it.
func defaultPod(pod *corev1.Pod) {
	spec := &pod.Spec
	setDefault(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	setDefault(&spec.DNSPolicy, corev1.DNSClusterFirst)
	if spec.TerminationGracePeriodSeconds == nil {
		grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
		spec.TerminationGracePeriodSeconds = &grace
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			for j := range list[i].Ports {
				setDefault(&list[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	}
}

// completePodStatus writes the addresses into the object.
func completePodStatus(pod *corev1.Pod, node Node, ips []netip.Addr) {
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending, HostIP: node.Addrs[0].String(), PodIP: ips[0].String()}
	for _, a := range node.Addrs {
		pod.Status.HostIPs = append(pod.Status.HostIPs, corev1.HostIP{IP: a.String()})
	}
	for _, a := range ips {
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
}

// kubeletPod returns what is to run for a complete pod.
func (w *work) kubeletPod(pod *corev1.Pod, node Node) *kubelet.Pod {
	run := &kubelet.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Node: node.Name,
		Addrs: w.podIPs[podKey(pod)], HostNetwork: pod.Spec.HostNetwork, Hostname: hostname(pod),
		ResolvConf: w.resolvConf(pod, node),
		Restart:    kubelet.RestartPolicy(pod.Spec.RestartPolicy),
		Grace:      time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second,
	}
	run.Hosts = hosts(pod, run.Addrs)
	if n := len(pod.Spec.Volumes); n > 0 {
		run.Problem = "spec.volumes: the lab mounts no volumes, its containers see this machine's files: remove them"
	}
	for i := range pod.Spec.InitContainers {
		run.Init = append(run.Init, w.container(pod, &pod.Spec.InitContainers[i], run))
	}
	for i := range pod.Spec.Containers {
		run.Containers = append(run.Containers, w.container(pod, &pod.Spec.Containers[i], run))
	}
	return run
}

func hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	// kubelet does the same: the kernel accepts no longer names (HOST_NAME_MAX).
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}

// container resolves one container. It puts mistakes into run.Problem, so that they do not affect other pods.
func (w *work) container(pod *corev1.Pod, c *corev1.Container, run *kubelet.Pod) kubelet.Container {
	sources := container.Sources{Env: w.opts.Env, ConfigMaps: w.objects.ConfigMaps, Secrets: w.objects.Secrets}
	vars, err := sources.Of(pod, c, hostname(pod))
	if err != nil && run.Problem == "" {
		run.Problem = fmt.Sprintf("container %s: %v", c.Name, err)
	}
	out := kubelet.Container{Name: c.Name, Dir: c.WorkingDir, Env: vars.List()}
	for _, arg := range slices.Concat(c.Command, c.Args) {
		out.Argv = append(out.Argv, vars.Expand(arg))
	}
	if len(c.Command) == 0 {
		out.Argv = slices.Concat(w.opts.Server, container.ServerFlags(c), out.Argv)
	}
	for _, p := range []struct {
		in   *corev1.Probe
		out  **kubelet.Probe
		name string
	}{{c.ReadinessProbe, &out.Readiness, "readinessProbe"}, {c.LivenessProbe, &out.Liveness, "livenessProbe"}} {
		if p.in == nil {
			continue
		}
		probe, err := container.Probe(p.in, pod, c, run.Addrs[0])
		if err != nil {
			w.fail(pod, fmt.Sprintf("spec.containers[%s].%s", c.Name, p.name), "%v", err)
			continue
		}
		*p.out = probe
	}
	return out
}

// resolvConf returns a pod's /etc/resolv.conf (k8s.io/kubernetes/pkg/kubelet/network/dns).
func (w *work) resolvConf(pod *corev1.Pod, node Node) string {
	var servers []netip.Addr
	var searches, options []string
	policy := pod.Spec.DNSPolicy
	if pod.Spec.HostNetwork && policy == corev1.DNSClusterFirst {
		policy = corev1.DNSDefault
	}
	reachable := w.podIPs[podKey(pod)]
	switch policy {
	case corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet:
		servers = w.dnsFor(reachable)
		searches = []string{pod.Namespace + ".svc." + clusterDomain, "svc." + clusterDomain, clusterDomain}
		options = []string{"ndots:5"}
	case corev1.DNSDefault:
		servers = w.opts.Upstreams
	}
	if c := pod.Spec.DNSConfig; c != nil {
		for _, s := range c.Nameservers {
			if a, err := netip.ParseAddr(s); err == nil && !slices.Contains(servers, a) {
				servers = append(servers, a)
			}
		}
		for _, s := range c.Searches {
			if !slices.Contains(searches, s) {
				searches = append(searches, s)
			}
		}
		options = mergeOptions(options, c.Options)
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

// dnsFor returns the cluster DNS addresses for a pod. One address is enough for a pod with both families.
func (w *work) dnsFor(pod []netip.Addr) []netip.Addr {
	for _, dns := range w.dnsAddrs() {
		for _, a := range pod {
			if a.Is4() == dns.Is4() {
				return []netip.Addr{dns}
			}
		}
	}
	return nil
}

// dnsAddrs returns the addresses of the DNS Service. A DNS Service in the files may have other addresses than the
// default.
func (w *work) dnsAddrs() []netip.Addr {
	for _, s := range w.objects.Services {
		if s.Namespace == metav1.NamespaceSystem && s.Name == dnsService {
			var out []netip.Addr
			for _, text := range s.Spec.ClusterIPs {
				if a, err := netip.ParseAddr(text); err == nil {
					out = append(out, a)
				}
			}
			return out
		}
	}
	return w.dns
}

// mergeOptions lets an option of dnsConfig replace the option with the same name.
func mergeOptions(options []string, extra []corev1.PodDNSConfigOption) []string {
	for _, o := range extra {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		options = slices.DeleteFunc(options, func(s string) bool {
			name, _, _ := strings.Cut(s, ":")
			return name == o.Name
		})
		options = append(options, text)
	}
	return options
}

// hosts returns a pod's /etc/hosts in the form that kubelet writes.
func hosts(pod *corev1.Pod, addrs []netip.Addr) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	name := hostname(pod)
	if pod.Spec.Subdomain != "" {
		name = fmt.Sprintf("%s.%s.%s.svc.%s\t%s", name, pod.Spec.Subdomain, pod.Namespace, clusterDomain, name)
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "%s\t%s\n", a, name)
	}
	for _, alias := range pod.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	return b.String()
}
