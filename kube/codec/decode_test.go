package codec

import (
	"errors"
	"fmt"
	discoveryv1 "k8s.io/api/discovery/v1"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/kube"
)

func TestDecode(t *testing.T) {
	const in = `# a comment before everything
apiVersion: v1
kind: Node
metadata: {name: n1}
spec:
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
---
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  nodeName: n1
  containers:
  - name: web
    image: ignored
    command: [tapestry, serve]
    resources: {requests: {cpu: 100m}}
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: other, annotations: &a {app: web}, labels: {<<: *a, tier: front}}
spec:
  ports:
  - {port: 80, targetPort: 8080}
  - {name: s, port: 443, targetPort: https}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: aGk=}
stringData: {b: plain}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: in-list}
---
apiVersion: v1
kind: List
items:
- {apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: c}}
`
	objs, err := Decode("lab.yaml", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	want := map[kube.Ref]string{
		{Kind: "Node", Name: "n1"}:                           "lab.yaml:2",
		{Kind: "Pod", Namespace: "default", Name: "web"}:     "lab.yaml:9",
		{Kind: "Service", Namespace: "other", Name: "web"}:   "lab.yaml:23",
		{Kind: "Secret", Namespace: "default", Name: "s"}:    "lab.yaml:31",
		{Kind: "Pod", Namespace: "default", Name: "in-list"}: "lab.yaml:40",
		{Kind: "IngressClass", Name: "c"}:                    "lab.yaml:45",
	}
	if diff := cmp.Diff(want, objs.Origin); diff != "" {
		t.Errorf("origins (-want +got):\n%s", diff)
	}
	if got := objs.Services[0].Labels; got["app"] != "web" || got["tier"] != "front" {
		t.Errorf("labels with a merge key are %v", got)
	}
	if s := objs.Secrets[0]; string(s.Data["a"]) != "hi" || string(s.Data["b"]) != "plain" || s.StringData != nil {
		t.Errorf("secret data is %q, stringData %q", s.Data, s.StringData)
	}
	if p := objs.Pods[1].Spec.Containers[0]; p.ReadinessProbe.HTTPGet.Port.StrVal != "http" || p.Resources.Requests.Cpu().MilliValue() != 100 {
		t.Errorf("container is %+v", p)
	}
	if ports := objs.Services[0].Spec.Ports; ports[0].TargetPort.IntVal != 8080 || ports[1].TargetPort.StrVal != "https" {
		t.Errorf("ports are %+v", ports)
	}
}

func TestDecodeMistakes(t *testing.T) {
	pod := func(spec string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n" + spec
	}
	for name, test := range map[string]struct {
		in   string
		want []string
	}{
		"unknown field": {pod("  containers:\n  - name: a\n    comand: [x]\n"), []string{
			`f.yaml:7: Pod default/web: spec.containers[0].comand: unknown field (did you mean "command"?)`}},
		"wrong case": {pod("  nodename: n1\n"), []string{
			`f.yaml:5: Pod default/web: spec.nodename: unknown field (did you mean "nodeName"?)`}},
		"nothing like it": {pod("  flavour: sweet\n"), []string{`f.yaml:5: Pod default/web: spec.flavour: unknown field`}},
		"all at once": {pod("  nodeName: 3\n  containers: {}\n  hostNetwork: \"yes\"\n---\nkind: Deployment\nmetadata: {name: d}\n"), []string{
			`f.yaml:5: Pod default/web: spec.nodeName: expected a string, got the number 3: put it in quotes`,
			`f.yaml:6: Pod default/web: spec.containers: expected a list, got a mapping: begin each item with a dash`,
			`f.yaml:7: Pod default/web: spec.hostNetwork: expected true or false, got the string "yes"`,
			`f.yaml:9: Deployment d: kind: kind "Deployment" is not one Tapestry knows: expected one of AddressPool, BGPAdvertisement, BGPPeer, ClusterNetworkPolicy, ConfigMap, EgressAddress, EndpointSlice, Ingress, IngressClass, L2Advertisement, Namespace, NetworkPolicy, Node, Pod, Secret, Service, ServiceCIDR`}},
		"not served yet": {"apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\nmetadata: {name: r, namespace: x}\n---\n" +
			"apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: c}\n---\n" +
			"apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n---\n" +
			"apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayList\nitems: [{metadata: {name: g}}]\n", []string{
			`f.yaml:1: HTTPRoute x/r: kind: kind HTTPRoute is known and not served yet: remove the object; served are AddressPool, BGPAdvertisement, BGPPeer, ClusterNetworkPolicy, ConfigMap, EgressAddress, EndpointSlice, Ingress,`,
			`f.yaml:5: GatewayClass c: kind: kind GatewayClass is known and not served yet`,
			// Another group's.
			`f.yaml:9: Gateway default/g: kind: kind "Gateway" is not one Tapestry knows: expected one of AddressPool, BGPAdvertisement, BGPPeer, ClusterNetworkPolicy, ConfigMap`,
			`f.yaml:15: Gateway default/g: kind: kind Gateway is known and not served yet`}},
		"for API servers": {"apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {name: p}\n", []string{
			`f.yaml:1: ValidatingAdmissionPolicyBinding p: kind: only an API server uses kind ValidatingAdmissionPolicyBinding: remove the object`}},
		"number too large": {pod("  priority: 3000000000\n"), []string{
			`f.yaml:5: Pod default/web: spec.priority: 3000000000 does not fit: expected a number of type int32`}},
		"a fraction": {pod("  priority: 1.5\n"), []string{
			`f.yaml:5: Pod default/web: spec.priority: 1.5 does not fit: expected a number of type int32`}},
		"text for a number": {pod("  priority: high\n"), []string{`f.yaml:5: Pod default/web: spec.priority: expected a number, got the string "high"`}},
		"bad quantity": {pod("  containers:\n  - name: a\n    resources: {limits: {cpu: lots}}\n"), []string{
			`f.yaml:7: Pod default/web: spec.containers[0].resources.limits[cpu]: expected a value of type Quantity, got the string "lots": `}},
		"a list for a mapping": {pod("  - x\n"), []string{`f.yaml:5: Pod default/web: spec: expected a mapping, got a list`}},
		"duplicate key":        {pod("  nodeName: a\n  nodeName: b\n"), []string{`f.yaml:6: Pod default/web: key "nodeName" is here twice, first in line 5: keep one of the two`}},
		"list for a label":     {"apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {a: [b]}}\n", []string{`f.yaml:3: Pod default/web: metadata.labels[a]: expected a string, got a list`}},
		"number for a label":   {"apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {a: 1}}\n", []string{`f.yaml:3: Pod default/web: metadata.labels[a]: expected a string, got the number 1: put it in quotes`}},
		"not base64":           {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  k: hello!\n", []string{`f.yaml:5: Secret default/s: data[k]: not base64: illegal base64 data at input byte 5: encode the value, or write it as it is under stringData`}},
		"no name":              {"apiVersion: v1\nkind: Pod\nmetadata: {}\n", []string{`f.yaml:1: Pod default/(no name): metadata.name: is missing: give the object a name`}},
		"no kind":              {"a: b\n", []string{`f.yaml:1: an object without kind: expected one of AddressPool, BGPAdvertisement, BGPPeer, ClusterNetworkPolicy, ConfigMap`}},
		"a scalar":             {"--- hello\n", []string{`f.yaml:1: expected an object with apiVersion, kind and metadata, got the string "hello"`}},
		"wrong version":        {"kind: Ingress\napiVersion: extensions/v1beta1\nmetadata: {name: i}\n", []string{`f.yaml:2: Ingress default/i: apiVersion: expected "networking.k8s.io/v1" for kind Ingress, got "extensions/v1beta1"`}},
		"no version":           {"kind: Pod\nmetadata: {name: i}\n", []string{`f.yaml:1: Pod default/i: apiVersion: expected "v1" for kind Pod, got ""`}},
		"node in a namespace":  {"apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}\n", []string{`f.yaml:1: Node x/n: metadata.namespace: kind Node belongs to no namespace: remove the field`}},
		"twice": {"apiVersion: v1\nkind: Node\nmetadata: {name: n}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n", []string{
			`f.yaml:5: Node n: already defined at f.yaml:1: keep one of the two`}},
		"not YAML": {"apiVersion: v1\nkind: [Pod\nmetadata: {name: n}\n", []string{`f.yaml:2: this is not YAML: did not find expected ',' or ']'`}},
		"bad indent": {"apiVersion: v1\nkind: Pod\nmetadata:\n  name: n\n  labels:\n    a: b\n c: d\n", []string{
			`f.yaml:7: this is not YAML: did not find expected key`}},
		"a tab":           {"kind: Pod\n\tmetadata: x\n", []string{`f.yaml:2: this is not YAML: `}},
		"infinity":        {pod("  priority: .inf\n"), []string{`f.yaml:5: Pod default/web: .inf is not a number Kubernetes knows`}},
		"list of nothing": {"kind: PodList\napiVersion: v1\n", []string{`f.yaml:1: kind PodList needs a list of items`}},
		"key of a list":   {"kind: Pod\n? [a]\n: b\n", []string{`f.yaml:2: Pod default/(no name): a key must be a plain word: found a list or mapping in its place`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode("f.yaml", []byte(test.in))
			if err == nil {
				t.Fatal("accepted")
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(test.want) {
				t.Fatalf("got %d errors, want %d:\n%v", len(got), len(test.want), err)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("got  %s\nwant %s", got[i], test.want[i])
				}
			}
		})
	}
}

func TestMistakesAreProblems(t *testing.T) {
	_, err := Decode("f.yaml", []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {nodeNam: x}\n"))
	var p kube.Problem
	if !errors.As(err, &p) || p.Field != "spec.nodeNam" || p.Origin != "f.yaml:4" || p.Severity != kube.Error {
		t.Errorf("got %#v", p)
	}
}

func TestGoodObjectsSurviveBadOnes(t *testing.T) {
	objs, err := Decode("f", []byte("apiVersion: v1\nkind: Node\nmetadata: {name: good}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: bad}\nspek: {}\n"))
	if err == nil || len(objs.Nodes) != 1 || objs.Nodes[0].Name != "good" {
		t.Errorf("got %v, %v", objs.Nodes, err)
	}
}

func TestDecodeEmpty(t *testing.T) {
	for _, in := range []string{"", "\n", "---\n", "# only a comment\n", "---\n---\n", "--- null\n"} {
		if objs, err := Decode("f", []byte(in)); err != nil || objs.Len() != 0 {
			t.Errorf("%q: %d objects, %v", in, objs.Len(), err)
		}
	}
}

// A few lines with aliases must not grow to gigabytes.
func TestBillionLaughs(t *testing.T) {
	var b strings.Builder
	b.WriteString("kind: ConfigMap\nb0: &b0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 12 {
		fmt.Fprintf(&b, "b%d: &b%d [", i+1, i+1)
		b.WriteString(strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*b%d, ", i), 10), ", ") + "]\n")
	}
	if _, err := Decode("f", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "make it smaller") {
		t.Errorf("got %v", err)
	}
	if _, err := Decode("f", []byte("kind: ConfigMap\na: &a\n  b: *a\n")); err == nil {
		t.Error("an alias inside of itself was accepted")
	}
}

func TestMergeNamesBothPlaces(t *testing.T) {
	one, _ := Decode("a.yaml", []byte("apiVersion: v1\nkind: Node\nmetadata: {name: n}\n"))
	two, _ := Decode("b.yaml", []byte("\n\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n"))
	all, err := kube.Merge(one, two)
	if err == nil || err.Error() != "b.yaml:3: Node n: already defined at a.yaml:1: keep one of the two" || len(all.Nodes) != 1 {
		t.Errorf("got %v, %d nodes", err, len(all.Nodes))
	}
}

// The JSON reader and the YAML parser must read the output of Encode alike.
func TestJSONStream(t *testing.T) {
	in, err := Decode("in", []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	data, err := Encode(in)
	if err != nil {
		t.Fatal(err)
	}
	short, long := parser{name: "x", seen: map[kube.Ref]string{}}, parser{name: "x", seen: map[kube.Ref]string{}}
	if !short.jsonStream(data) {
		t.Fatal("the short way refuses what Encode wrote")
	}
	long.yamlStream(data)
	got, other := short.objects.Objects(), long.objects.Objects()
	if diff := cmp.Diff(got, other, cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*kube.OtherPod]{})); diff != "" {
		t.Errorf("short and long way differ:\n%s", diff)
	}
	got.Origin, in.Origin = nil, nil
	if diff := cmp.Diff(in, got, cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*kube.OtherPod]{})); diff != "" {
		t.Errorf("objects changed (-in +out):\n%s", diff)
	}
}

const sample = `apiVersion: v1
kind: Node
metadata: {name: n1, labels: {zone: a}}
spec: {podCIDRs: [10.244.1.0/24]}
status:
  addresses: [{type: InternalIP, address: 192.168.0.1}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  containers: [{name: a, command: [x], resources: {limits: {cpu: "1"}}}]
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: default}
stringData: {k: "line\n---\nline <&>"}
`

func FuzzDecode(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("kind: List\nitems: [{kind: Pod, apiVersion: v1, metadata: {name: 1}}]"))
	f.Add([]byte("a: &a {<<: *a}"))
	f.Add([]byte("---\n{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\"}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, err := Decode("f", data)
		if len(objs.Origin) != objs.Len() {
			t.Fatalf("%d objects and %d origins", objs.Len(), len(objs.Origin))
		}
		if err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Fatalf("an error without file and line: %v", err)
		}
		for obj := range objs.All() {
			if obj.GetName() == "" {
				t.Fatal("an object without name")
			}
		}
	})
}
