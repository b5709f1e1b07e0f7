package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestNodesAndSystemPods(t *testing.T) {
	nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes.Items) != len(state.Nodes) {
		t.Errorf("%d Nodes, want %d", len(nodes.Items), len(state.Nodes))
	}
	for _, n := range nodes.Items {
		conditions := map[corev1.NodeConditionType]corev1.ConditionStatus{}
		for _, c := range n.Status.Conditions {
			conditions[c.Type] = c.Status
		}
		if conditions[corev1.NodeReady] != corev1.ConditionTrue {
			t.Errorf("Node %s: Ready is %s", n.Name, conditions[corev1.NodeReady])
		}
		if conditions[corev1.NodeNetworkUnavailable] != corev1.ConditionFalse {
			t.Errorf("Node %s: NetworkUnavailable is %q, want False", n.Name, conditions[corev1.NodeNetworkUnavailable])
		}
	}
	eventually(t, soon, "pods of kube-system", func() error {
		pods, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return fmt.Errorf("there are none")
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; !ready(p) {
				return fmt.Errorf("%s: %s", p.Name, describe(p))
			}
		}
		return nil
	})
}

func TestPodToPod(t *testing.T) {
	pods := onEachNode(t, namespace(t))
	for _, from := range pods {
		for _, to := range pods {
			t.Run(from.Name+" to "+to.Name, func(t *testing.T) {
				if _, err := inPod(t.Context(), from, "ping", "-c", "2", "-i", "0.2", "-W", "2", to.Status.PodIP); err != nil {
					t.Error(err)
				}
				url := "http://" + net.JoinHostPort(to.Status.PodIP, "8080") + "/clientip"
				got, err := inPod(t.Context(), from, curl(url)...)
				if err != nil {
					t.Fatal(err)
				}
				if host, _, _ := net.SplitHostPort(got); host != from.Status.PodIP {
					t.Errorf("%s sees a client at %s, want %s", to.Name, got, from.Status.PodIP)
				}
			})
		}
	}
}

// reached asks for the host name until every pod has answered.
func reached(pods []*corev1.Pod, ask func() (string, error)) error {
	missing := map[string]bool{}
	for _, p := range pods {
		missing[p.Name] = true
	}
	for range 60 {
		name, err := ask()
		if err != nil {
			return err
		}
		delete(missing, strings.TrimSpace(name))
		if len(missing) == 0 {
			return nil
		}
	}
	return fmt.Errorf("60 requests, and none reached %v", missing)
}

func TestClusterIP(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods))
	url := "http://" + net.JoinHostPort(s.Spec.ClusterIP, "80") + "/hostname"
	for _, from := range pods { // each pod reaches itself as well
		t.Run("from "+from.Name, func(t *testing.T) {
			eventually(t, soon, "the Service", func() error { _, err := inPod(t.Context(), from, curl(url)...); return err })
			if err := reached(pods, func() (string, error) { return inPod(t.Context(), from, curl(url)...) }); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("unknown port", func(t *testing.T) {
		began := time.Now()
		_, err := inPod(t.Context(), pods[0], curl("http://"+net.JoinHostPort(s.Spec.ClusterIP, "81"))...)
		if err == nil || time.Since(began) > 2*time.Second {
			t.Errorf("after %v: %v, want a refusal at once", time.Since(began), err)
		}
	})
}

func TestNodePort(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
	port := fmt.Sprint(s.Spec.Ports[0].NodePort)
	for _, n := range state.Nodes {
		t.Run(n.Name, func(t *testing.T) {
			base := "http://" + net.JoinHostPort(n.Addrs[0], port)
			ask := func(path string) (string, error) { return onNode(t.Context(), "outside", curl(base+path)...) }
			eventually(t, soon, "the NodePort", func() error { _, err := ask("/hostname"); return err })
			if err := reached(pods, func() (string, error) { return ask("/hostname") }); err != nil {
				t.Error(err)
			}
			for range 4 { // pods on this node and on others
				got, err := ask("/clientip")
				if err != nil {
					t.Fatal(err)
				}
				if host, _, _ := net.SplitHostPort(got); host != "172.30.0.1" {
					t.Errorf("the pod sees a client at %s, want the one outside", got)
				}
			}
			if _, err := inPod(t.Context(), pods[0], curl(base+"/hostname")...); err != nil {
				t.Errorf("from a pod: %v", err)
			}
		})
	}
}

func TestDNS(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods))
	for _, from := range pods {
		t.Run("from "+from.Name, func(t *testing.T) {
			for name, want := range map[string]string{
				"web":                                  s.Spec.ClusterIP,
				"web." + ns:                            s.Spec.ClusterIP,
				"web." + ns + ".svc.cluster.local":     s.Spec.ClusterIP,
				"kubernetes.default":                   "10.96.0.1",
				"kube-dns.kube-system":                 "10.96.0.10",
				"kubernetes.default.svc.cluster.local": "10.96.0.1",
			} {
				eventually(t, soon, name, func() error {
					got, err := inPod(t.Context(), from, "getent", "ahostsv4", name)
					if err != nil {
						return err
					}
					if addr, _, _ := strings.Cut(got, " "); addr != want {
						return fmt.Errorf("%s, want %s", addr, want)
					}
					return nil
				})
			}
			if _, err := inPod(t.Context(), from, curl("http://web/hostname")...); err != nil {
				t.Error(err)
			}
			if got, err := inPod(t.Context(), from, "getent", "hosts", "nothing."+ns+".svc.cluster.local"); err == nil {
				t.Errorf("a name that does not exist is %s", got)
			}
		})
	}
}

func TestEgress(t *testing.T) {
	pods := onEachNode(t, namespace(t))
	hold(t, "outside", filepath.Join(theLab.Bin, "agnhost"), "netexec", "--http-port=9000", "--udp-port=9001")
	for i, from := range pods {
		t.Run("from "+from.Name, func(t *testing.T) {
			var got string
			eventually(t, soon, "a server outside", func() (err error) {
				got, err = inPod(t.Context(), from, curl("http://172.30.0.1:9000/clientip")...)
				return err
			})
			if host, _, _ := net.SplitHostPort(got); host != state.Nodes[i].Addrs[0] {
				t.Errorf("it sees a client at %s, want the node's address %s", got, state.Nodes[i].Addrs[0])
			}
			if _, err := inPod(t.Context(), from, "ping", "-c", "1", "-W", "2", "172.30.0.1"); err != nil {
				t.Error(err)
			}
			got, err := inPod(t.Context(), from, "sh", "-c", "echo hostname | nc -u -w 2 172.30.0.1 9001")
			if err != nil || got == "" {
				t.Errorf("UDP: %q, %v", got, err)
			}
		})
	}
}

func TestAPIServerToPod(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	service(t, ns, len(pods))
	for _, p := range pods {
		t.Run(p.Name, func(t *testing.T) {
			got, err := client.CoreV1().Pods(ns).ProxyGet("http", p.Name, "8080", "hostname", nil).DoRaw(t.Context())
			if err != nil || string(got) != p.Name {
				t.Errorf("through the pod's proxy: %q, %v", got, err)
			}
			if got, err := inPod(t.Context(), p, "hostname"); err != nil || strings.TrimSpace(got) != p.Name {
				t.Errorf("exec: %q, %v", got, err)
			}
			logs, err := client.CoreV1().Pods(ns).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
			if err != nil || len(logs) == 0 {
				t.Errorf("logs: %q, %v", logs, err)
			}
		})
	}
	err := reached(pods, func() (string, error) {
		got, err := client.CoreV1().Services(ns).ProxyGet("http", "web", "80", "hostname", nil).DoRaw(t.Context())
		return string(got), err
	})
	if err != nil {
		t.Errorf("through the Service's proxy: %v", err)
	}
}

// onHosts returns netexec pods, not started yet, on the networks of all nodes, on port 18080.
func onHosts(ns string) (pods []*corev1.Pod) {
	for _, n := range state.Nodes {
		p := netexec(ns, "host-"+n.Name, n.Name)
		p.Labels["app"] = "host"
		p.Spec.HostNetwork = true
		p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
		p.Spec.Containers[0].Args = []string{"netexec", "--http-port=18080", "--udp-port=18081"}
		p.Spec.Containers[0].ReadinessProbe.HTTPGet.Port = intstr.FromInt32(18080)
		pods = append(pods, p)
	}
	return pods
}

// TestHostNetworkBackends: a Service whose pods are on their nodes' networks, like many Ingress controllers, can be
// reached from everywhere.
func TestHostNetworkBackends(t *testing.T) {
	ns := namespace(t)
	client := start(t, netexec(ns, "client", state.Nodes[0].Name))[0]
	hosts := onHosts(ns)
	s := service(t, ns, 0, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Selector = map[string]string{"app": "host"}
		s.Spec.Ports[0].TargetPort = intstr.FromInt32(18080)
	})
	hosts = start(t, hosts...)
	for _, p := range hosts {
		p.Name = p.Spec.NodeName // which is the name in its answers
	}
	urls := map[string]string{"ClusterIP": "http://" + net.JoinHostPort(s.Spec.ClusterIP, "80") + "/hostname"}
	for _, n := range state.Nodes {
		urls[n.Name] = "http://" + net.JoinHostPort(n.Addrs[0], fmt.Sprint(s.Spec.Ports[0].NodePort)) + "/hostname"
	}
	for at, url := range urls {
		from := map[string]func() (string, error){
			"pod":  func() (string, error) { return inPod(t.Context(), client, curl(url)...) },
			"node": func() (string, error) { return onNode(t.Context(), state.Nodes[0].Name, curl(url)...) },
		}
		if at != "ClusterIP" {
			from["outside"] = func() (string, error) { return onNode(t.Context(), "outside", curl(url)...) }
		}
		for who, ask := range from {
			t.Run(at+" from "+who, func(t *testing.T) {
				eventually(t, soon, "all of them", func() error { return reached(hosts, ask) })
			})
		}
	}
}

func TestHostNetworkToClusterIP(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods))
	url := "http://" + net.JoinHostPort(s.Spec.ClusterIP, "80") + "/hostname"
	for _, from := range start(t, onHosts(ns)...) {
		t.Run(from.Name, func(t *testing.T) {
			eventually(t, soon, "the Service", func() error { _, err := inPod(t.Context(), from, curl(url)...); return err })
			if err := reached(pods, func() (string, error) { return inPod(t.Context(), from, curl(url)...) }); err != nil {
				t.Error(err)
			}
			for _, p := range pods {
				if _, err := inPod(t.Context(), from, curl("http://"+net.JoinHostPort(p.Status.PodIP, "8080")+"/hostname")...); err != nil {
					t.Errorf("pod %s: %v", p.Name, err)
				}
			}
			if _, err := inPod(t.Context(), from, curl("http://web."+ns+".svc.cluster.local/hostname")...); err != nil {
				t.Errorf("by name: %v", err)
			}
		})
	}
}
