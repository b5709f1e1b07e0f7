package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// committed lists the manifests of this repository, and the arguments that make each.
var committed = map[string][]string{
	"../tapestry.yaml":  {"-f", "../plain.yaml"},
	"../uninstall.yaml": {"--set", "uninstall=true"},
}

func rendered(t *testing.T, args ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := run(args, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestCommitted: the committed manifests are what the chart makes.
func TestCommitted(t *testing.T) {
	for file, args := range committed {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(rendered(t, args...))); diff != "" {
			t.Errorf("%s is not what the chart gives: run 'make manifests' (-committed +rendered):\n%s", file, diff)
		}
	}
}

// TestPackage: Helm reads a release's package as the chart with the release's version. The release's manifests are what
// Helm renders from it.
func TestPackage(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("go", "run", "./deploy/release", "-version", "v9.8.7", "-out", dir, "chart")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file := filepath.Join(dir, "tapestry-9.8.7.tgz")
	packed, err := loader.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := loader.Load("../chart")
	if err != nil {
		t.Fatal(err)
	}
	if err := packed.Validate(); err != nil || packed.Metadata.Version != "9.8.7" || packed.Metadata.AppVersion != "9.8.7" {
		t.Errorf("the package is %+v, %v", packed.Metadata, err)
	}
	if len(packed.Templates) != len(plain.Templates) || len(packed.Values) != len(plain.Values) || packed.Metadata.KubeVersion != plain.Metadata.KubeVersion {
		t.Errorf("the package has %d templates and %d values, the chart %d and %d", len(packed.Templates), len(packed.Values), len(plain.Templates), len(plain.Values))
	}
	for name, args := range committed {
		want := bytes.ReplaceAll(rendered(t, args...), []byte(plain.Metadata.Version), []byte("9.8.7"))
		got := rendered(t, append([]string{"-chart", file}, args...)...)
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s of the package is another (-chart +package):\n%s", name, diff)
		}
		written, err := os.ReadFile(filepath.Join(dir, filepath.Base(name)))
		if diff := cmp.Diff(string(got), string(written)); err != nil || diff != "" {
			t.Errorf("%s of the release is another: %v\n%s", name, err, diff)
		}
	}
}

// decode reads manifests with an API server's strict validation.
func decode(t *testing.T, manifests []byte) []runtime.Object {
	t.Helper()
	kinds := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(kinds); err != nil {
			t.Fatal(err)
		}
	}
	codec := serializer.NewCodecFactory(kinds, serializer.EnableStrict).UniversalDeserializer()
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests)))
	var list []runtime.Object
	for {
		doc, err := docs.Read()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		obj, _, err := codec.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		list = append(list, obj)
	}
}

func of[T runtime.Object](list []runtime.Object) []T {
	var out []T
	for _, obj := range list {
		if t, ok := obj.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// variants lists values that change which objects there are.
var variants = map[string][]string{
	"plain":             {"-f", "../plain.yaml"},
	"uninstall":         {"--set", "uninstall=true"},
	"no ingress":        {"-f", "../plain.yaml", "--set", "ingress.enabled=false"},
	"no host TAP":       {"-f", "../plain.yaml", "--set", "hostTAP.enabled=false,ingress.http=:8080,ingress.https="},
	"few secrets":       {"-f", "../plain.yaml", "--set", "ingress.secretNamespaces={shop,blog},ingress.default=true"},
	"all secrets":       {"-f", "../plain.yaml", "--set", "ingress.secretNamespaces={*}"},
	"high ports":        {"-f", "../plain.yaml", "--set", "ingress.http=127.0.0.1:8080,ingress.https=:8443"},
	"dual stack":        {"-f", "../plain.yaml", "--set", "clusterCIDRs={10.0.0.0/8,fd00::/48},serviceCIDRs={10.96.0.0/16,fd01::/112},clusterDNS={10.96.0.10,fd01::a}"},
	"without extras":    {"-f", "../plain.yaml", "--set", "nodeCIDRs={192.168.0.0/16,2001:db8::/32},admissionPolicy=false,dnsService=false,underlayMTU=9000,logLevel=debug,dnsUpstreams={192.0.2.1},dnsPodsInsecure=true,extraArgs={--flows=1000}"},
	"decorated":         {"-f", "../plain.yaml", "--set", "podAnnotations.a=b,seLinuxOptions.type=spc_t,image.pullSecrets[0].name=s,image.tag=v1,nodeSelector.zone=a"},
	"evictions":         {"-f", "../plain.yaml", "--set", "healing.evictPods=true"},
	"announcers":        {"-f", "../plain.yaml", "--set", "announce.l2.enabled=true,announce.bgp.enabled=true"},
	"another directory": {"-f", "../plain.yaml", "--set", "runDir=/run/user/1000/tapestry,stateDir=/home/u/tapestry,cniBinDir=/home/u/cni/bin"},
}

// workload is a pod's template, and whose it is.
type workload struct {
	Name string
	Spec corev1.PodSpec
}

func workloads(list []runtime.Object) (out []workload) {
	for _, ds := range of[*appsv1.DaemonSet](list) {
		out = append(out, workload{ds.Name, ds.Spec.Template.Spec})
	}
	for _, d := range of[*appsv1.Deployment](list) {
		out = append(out, workload{d.Name, d.Spec.Template.Spec})
	}
	return out
}

// rights lists what a container is allowed that most containers are not.
type rights struct {
	container    string
	capabilities []string
	root         bool
	runsOn       bool // with these rights
}

// TestRights: which container may do what, in every variant. deploy/README.md must explain every line that is added
// here.
func TestRights(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]rights{
		"tapestry/host-tap":              {capabilities: []string{"NET_ADMIN", "NET_BIND_SERVICE"}, root: true},
		"tapestry/directories":           {root: true},
		"tapestry/cni":                   {root: true},
		"tapestry/agent":                 {},
		"tapestry-keeper/directories":    {root: true},
		"tapestry-keeper/keeper":         {},
		"tapestry-controller/controller": {},
		"tapestry-l2/l2":                 {capabilities: []string{"NET_RAW"}, root: true, runsOn: true},
		"tapestry-bgp/bgp":               {},
		"tapestry-uninstall/cni":         {root: true},
		"tapestry-uninstall/host-tap":    {capabilities: []string{"NET_ADMIN", "DAC_OVERRIDE"}, root: true},
		"tapestry-uninstall/done":        {},
	}
	seen := map[string]bool{}
	for name, args := range variants {
		for _, ds := range workloads(decode(t, rendered(t, args...))) {
			pod := ds.Spec
			if pod.HostPID || pod.HostIPC || pod.ShareProcessNamespace != nil || !pod.HostNetwork {
				t.Errorf("%s: %s: namespaces of the host", name, ds.Name)
			}
			if mounts := pod.AutomountServiceAccountToken; (mounts == nil || *mounts) && len(pod.Containers)+len(pod.InitContainers) > 1 {
				t.Errorf("%s: %s: the token is mounted into every container", name, ds.Name)
			}
			if pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: %s: no seccomp profile", name, ds.Name)
			}
			for _, v := range pod.Volumes {
				if v.HostPath != nil && !bytes.Contains(readme, []byte("`"+v.Name+"`")) {
					t.Errorf("%s: %s: nothing in deploy/README.md says what the hostPath volume %s is for", name, ds.Name, v.Name)
				}
			}
			for i, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
				key := ds.Name + "/" + c.Name
				want, known := allowed[key]
				if !known {
					t.Errorf("%s: nobody has said what %s may do", name, key)
				}
				seen[key] = true
				if problem := exceeds(c, want); problem != "" {
					t.Errorf("%s: %s: %s", name, key, problem)
				}
				if runsOn := i >= len(pod.InitContainers); runsOn && !want.runsOn && (want.root || len(want.capabilities) > 0) {
					t.Errorf("%s: %s runs on and has more than an ordinary user", name, key)
				}
				if !bytes.Contains(readme, []byte("`"+c.Name+"`")) {
					t.Errorf("%s: nothing in deploy/README.md says what %s may do", name, key)
				}
			}
		}
	}
	for key := range allowed {
		if !seen[key] {
			t.Errorf("there is no %s: remove it from the list", key)
		}
	}
}

// exceeds returns a sentence that says where a container may do more than wanted; "" when nowhere.
func exceeds(c corev1.Container, want rights) string {
	s := c.SecurityContext
	switch {
	case s == nil || s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}):
		return "it does not drop all capabilities"
	case s.Privileged != nil && *s.Privileged:
		return "it is privileged"
	case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
		return "it may gain privileges"
	case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		return "its root file system can be written"
	case s.ProcMount != nil || s.SeccompProfile != nil || s.AppArmorProfile != nil:
		return "it changes what the pod says of profiles"
	case s.RunAsUser == nil || s.RunAsGroup == nil || *s.RunAsGroup == 0:
		return "its user and group are not said"
	case !want.root && (*s.RunAsUser == 0 || s.RunAsNonRoot == nil || !*s.RunAsNonRoot):
		return "it is root"
	}
	for _, add := range s.Capabilities.Add {
		if !slices.Contains(want.capabilities, string(add)) {
			return "it has the capability " + string(add)
		}
	}
	return ""
}

// TestCapabilitiesFollowValues: a feature that values switch off needs no capability.
func TestCapabilitiesFollowValues(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "NET_ADMIN NET_BIND_SERVICE", "high ports": "NET_ADMIN", "no ingress": "NET_ADMIN", "no host TAP": "",
	} {
		var got []string
		for _, ds := range of[*appsv1.DaemonSet](decode(t, rendered(t, variants[name]...))) {
			for _, c := range ds.Spec.Template.Spec.InitContainers {
				for _, add := range c.SecurityContext.Capabilities.Add {
					got = append(got, string(add))
				}
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: capabilities %q, want %q", name, s, want)
		}
	}
}

// TestRBAC lists everything that the service accounts may do. deploy/README.md must explain every addition.
func TestRBAC(t *testing.T) {
	read := "get list watch"
	controller := map[string]string{
		"nodes": "list watch", "discovery.k8s.io/endpointslices": "list watch", "namespaces": "list watch", "services": "list watch", "networking.k8s.io/servicecidrs": "list watch",
		"networking.k8s.io/ingresses": "list watch", "networking.k8s.io/ingressclasses": "list watch", "tapestry.dev/addresspools": "list watch", "tapestry.dev/egressaddresses": "list watch",
		"tapestry.dev/l2advertisements": "list watch", "tapestry.dev/bgppeers": "list watch", "tapestry.dev/bgpadvertisements": "list watch",
		"services/status": "patch", "networking.k8s.io/ingresses/status": "patch", "tapestry.dev/addresspools/status": "patch", "tapestry.dev/egressaddresses/status": "patch",
		"tapestry.dev/l2advertisements/status": "patch", "tapestry.dev/bgppeers/status": "patch", "tapestry.dev/bgpadvertisements/status": "patch", "events": "create patch",
	}
	for name, want := range map[string]map[string]string{
		"plain": {
			"nodes": read + " patch", "pods": read, "namespaces": read, "services": read,
			"discovery.k8s.io/endpointslices": read, "networking.k8s.io/servicecidrs": read, "networking.k8s.io/networkpolicies": read, "policy.networking.k8s.io/clusternetworkpolicies": read, "tapestry.dev/egressaddresses": read,
			"networking.k8s.io/ingresses": read, "networking.k8s.io/ingressclasses": read,
			"nodes/status": "patch", "events": "create patch",
			"admissionregistration.k8s.io/validatingadmissionpolicybindings[tapestry-agent-own-node]": read,
		},
		"evictions": {
			"nodes": read + " patch", "pods": read, "namespaces": read, "services": read,
			"discovery.k8s.io/endpointslices": read, "networking.k8s.io/servicecidrs": read, "networking.k8s.io/networkpolicies": read, "policy.networking.k8s.io/clusternetworkpolicies": read, "tapestry.dev/egressaddresses": read,
			"networking.k8s.io/ingresses": read, "networking.k8s.io/ingressclasses": read,
			"nodes/status": "patch", "events": "create patch", "pods/eviction": "create",
			"admissionregistration.k8s.io/validatingadmissionpolicybindings[tapestry-agent-own-node]": read,
		},
		"announcers": {
			"nodes": read + " patch", "pods": read, "namespaces": read, "services": read,
			"discovery.k8s.io/endpointslices": read, "networking.k8s.io/servicecidrs": read, "networking.k8s.io/networkpolicies": read, "policy.networking.k8s.io/clusternetworkpolicies": read, "tapestry.dev/egressaddresses": read,
			"networking.k8s.io/ingresses": read, "networking.k8s.io/ingressclasses": read, "nodes/status": "patch", "events": "create patch",
			"admissionregistration.k8s.io/validatingadmissionpolicybindings[tapestry-agent-own-node]": read,
			"tapestry.dev/addresspools": read, "tapestry.dev/l2advertisements": read, "tapestry.dev/bgppeers": read, "tapestry.dev/bgpadvertisements": read,
		},
		"no ingress": {
			"nodes": read + " patch", "pods": read, "namespaces": read, "services": read,
			"discovery.k8s.io/endpointslices": read, "networking.k8s.io/servicecidrs": read, "networking.k8s.io/networkpolicies": read, "policy.networking.k8s.io/clusternetworkpolicies": read, "tapestry.dev/egressaddresses": read,
			"nodes/status": "patch", "events": "create patch",
			"admissionregistration.k8s.io/validatingadmissionpolicybindings[tapestry-agent-own-node]": read,
		},
	} {
		both := map[string]map[string]string{"tapestry": {}, "tapestry-controller": {}}
		objs := decode(t, rendered(t, variants[name]...))
		for _, role := range of[*rbacv1.ClusterRole](objs) {
			got := both[role.Name]
			for _, r := range role.Rules {
				for _, group := range r.APIGroups {
					for _, resource := range r.Resources {
						key := strings.TrimPrefix(group+"/"+resource, "/")
						if len(r.ResourceNames) > 0 {
							key += fmt.Sprint(r.ResourceNames)
						}
						got[key] = strings.TrimSpace(got[key] + " " + strings.Join(r.Verbs, " "))
					}
				}
			}
		}
		if diff := cmp.Diff(map[string]map[string]string{"tapestry": want, "tapestry-controller": controller}, both); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
	}
}

// TestLease: the controller may do with Leases what it takes to lead, in its own namespace.
func TestLease(t *testing.T) {
	for _, role := range of[*rbacv1.Role](decode(t, rendered(t, variants["plain"]...))) {
		got := fmt.Sprint(role.Namespace, role.Rules)
		if want := "kube-system[{[create] [coordination.k8s.io] [leases] [] []} {[get update] [coordination.k8s.io] [leases] [tapestry-controller] []}]"; got != want {
			t.Errorf("%s is for %s, want %s", role.Name, got, want)
		}
	}
}

// TestSecrets: only Secrets in the named namespaces may be read.
func TestSecrets(t *testing.T) {
	for name := range variants {
		var in []string // namespaces, "*" for all
		objs := decode(t, rendered(t, variants[name]...))
		for _, role := range of[*rbacv1.ClusterRole](objs) {
			if slices.ContainsFunc(role.Rules, readsSecrets) {
				in = append(in, "*")
			}
		}
		bound := map[string]string{}
		for _, b := range of[*rbacv1.RoleBinding](objs) {
			if b.Name == "tapestry-controller" {
				continue // TestLease
			}
			if len(b.Subjects) != 1 || b.Subjects[0].Kind != "ServiceAccount" || b.Subjects[0].Name != "tapestry" || b.Subjects[0].Namespace != "kube-system" {
				t.Errorf("%s: the Role in %s is given to %v", name, b.Namespace, b.Subjects)
			}
			bound[b.Namespace] = b.RoleRef.Name
		}
		for _, role := range of[*rbacv1.Role](objs) {
			if role.Name == "tapestry-controller" {
				continue
			}
			if len(role.Rules) != 1 || !readsSecrets(role.Rules[0]) || strings.Join(role.Rules[0].Verbs, " ") != "get list watch" || bound[role.Namespace] != role.Name {
				t.Errorf("%s: the Role in %s, bound %q, is for %v", name, role.Namespace, bound[role.Namespace], role.Rules)
			}
			in = append(in, role.Namespace)
		}
		slices.Sort(in)
		if want := map[string]string{"few secrets": "blog shop", "all secrets": "*"}[name]; strings.Join(in, " ") != want {
			t.Errorf("%s: Secrets of %q may be read, want those of %q", name, in, want)
		}
	}
}

func readsSecrets(r rbacv1.PolicyRule) bool {
	return slices.Contains(r.Resources, "secrets") || slices.Contains(r.Resources, "*")
}

// TestObjects checks the other properties of the objects.
func TestObjects(t *testing.T) {
	for name, args := range variants {
		objs := decode(t, rendered(t, args...))
		if name == "uninstall" {
			if len(objs) != 1 {
				t.Errorf("uninstall has %d objects", len(objs))
			}
			continue
		}
		for _, ds := range of[*appsv1.DaemonSet](objs) {
			keeper := ds.Name == "tapestry-keeper"
			if on := ds.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType; on != keeper {
				t.Errorf("%s: %s has the update strategy %s", name, ds.Name, ds.Spec.UpdateStrategy.Type)
			}
			pod := ds.Spec.Template.Spec
			if keeper && (pod.ServiceAccountName != "" || slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Projected != nil })) {
				t.Errorf("%s: the keeper has access to the API", name)
			}
			if pod.PriorityClassName == "" || pod.DNSPolicy != corev1.DNSDefault || len(pod.Tolerations) != 1 || pod.Tolerations[0].Operator != corev1.TolerationOpExists {
				t.Errorf("%s: %s would not run everywhere: %+v", name, ds.Name, pod.Tolerations)
			}
			for _, c := range pod.Containers {
				for _, arg := range c.Args {
					if strings.Contains(arg, "%!") || strings.Contains(arg, "<no value>") || strings.Contains(arg, "e+") {
						t.Errorf("%s: argument %q", name, arg)
					}
				}
			}
		}
		policies, bindings := of[*admissionv1.ValidatingAdmissionPolicy](objs), of[*admissionv1.ValidatingAdmissionPolicyBinding](objs)
		if want := name != "without extras"; (len(policies) == 1) != want || (len(bindings) == 1) != want || want && bindings[0].Spec.PolicyName != policies[0].Name {
			t.Errorf("%s: %d policies, %d bindings", name, len(policies), len(bindings))
		}
		for _, svc := range of[*corev1.Service](objs) {
			if svc.Name != "kube-dns" || svc.Namespace != "kube-system" || svc.Spec.Selector != nil || len(svc.Spec.Ports) != 2 || svc.Spec.ClusterIP != svc.Spec.ClusterIPs[0] {
				t.Errorf("%s: the DNS Service is %+v", name, svc)
			}
			if dual := name == "dual stack"; dual != (*svc.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack) {
				t.Errorf("%s: ipFamilyPolicy %s", name, *svc.Spec.IPFamilyPolicy)
			}
		}
	}
}

// TestRefused: every wrong value gets a sentence that explains it.
func TestRefused(t *testing.T) {
	good := "apiServers={https://10.0.0.1:6443}"
	for set, want := range map[string]string{
		"logLevel=info":                                         "apiServers is empty: give the API server's address",
		"apiServers={10.0.0.1}":                                 `apiServers: "10.0.0.1" is not the URL of an API server`,
		good + ",clusterCIDRs=null":                             "clusterCIDRs is empty",
		good + ",clusterCIDRs={10.0.0.0}":                       `clusterCIDRs: "10.0.0.0" is not a range`,
		good + ",serviceCIDRs={all}":                            `serviceCIDRs: "all" is not a range`,
		good + ",nodeCIDRs={10.0.0.1}":                          `nodeCIDRs: "10.0.0.1" is not a range`,
		good + ",clusterDNS=null":                               "clusterDNS is empty",
		good + ",clusterDNS={a}":                                `clusterDNS: "a" is not an address`,
		good + ",clusterDNS={1.1.1.1,1.1.1.2,1.1.1.3}":          "clusterDNS has 3 addresses",
		good + ",ingress.secretNamespaces={Shop}":               `ingress.secretNamespaces: "Shop" is not the name of a namespace`,
		good + ",ingress.secretNamespaces={*,shop}":             `"*" stands for all namespaces`,
		good + ",ingress.http=80":                               `ingress.http: "80" is not an address to listen on`,
		good + ",ingress.http=,ingress.https=":                  "neither ingress.http nor ingress.https",
		good + ",hostTAP.enabled=false":                         "ingress is to be served on :80, a port which takes a capability",
		good + ",wireguardPort=0":                               "wireguardPort: 0 is not a port",
		good + ",wireguardPort=500":                             "wireguardPort: 500 is not a port that takes no capability",
		good + ",healthAddress=10.0.0.1:1":                      `healthAddress: "10.0.0.1:1" must have the loopback address in it`,
		good + ",metricsAddress=10249":                          `metricsAddress: "10249" is not an address to listen on`,
		good + ",underlayMTU=100":                               "underlayMTU: 100 is not the MTU",
		good + ",updateStrategy.rollingUpdate.maxUnavailable=1": "maxSurge is 1 and maxUnavailable 1, and Kubernetes takes only one",
		good + ",user=0":                                        "user must be the number of an ordinary user",
		good + ",group=0":                                       "group must be the number of an ordinary group",
		good + ",logLevel=loud":                                 `logLevel: "loud" is none`,
		good + ",runDir=run":                                    `runDir: "run" is not a directory`,
		good + ",stateDir=/tapestry":                            `stateDir: "/tapestry" is not a directory below another`,
		"uninstall=true,runDir=/":                               `runDir: "/" is not a directory`,
	} {
		err := run([]string{"--set", set}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: %v, want %q", set, err, want)
		}
	}
	if err := run([]string{"-f", "no-such-file.yaml"}, io.Discard); err == nil || !strings.Contains(err.Error(), "no-such-file.yaml") {
		t.Error(err)
	}
}

// TestValuesGoBefore: a later file takes precedence over an earlier one, and --set over files.
func TestValuesGoBefore(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "wireguardPort: 1111\nhealthAddress: \":1111\"\nlogLevel: warn\n", "b": "healthAddress: \":2222\"\nlogLevel: error\n"} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := string(rendered(t, "-f", "../plain.yaml", "-f", dir+"/a", "-f", dir+"/b", "--set", "logLevel=debug"))
	for _, want := range []string{"--wireguard-port=1111", "--health-address=:2222", "port: 2222", "--log-level=debug"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %s", want)
		}
	}
}
