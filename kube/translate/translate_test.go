package translate_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/controlplane"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/kube/translate"
)

func TestMTU(t *testing.T) {
	node := func(name, endpoint string, podCIDRs ...string) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{kube.EndpointAnnotation: endpoint}},
			Spec:       corev1.NodeSpec{PodCIDRs: podCIDRs},
		}
	}
	const dual = "fd00:1::/64"
	for name, test := range map[string]struct {
		nodes    []*corev1.Node
		underlay int
		want     int
		warn     bool
	}{
		"v4":                         {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24", dual), node("n2", "1.1.1.2:1", "10.0.2.0/24")}, 0, 1500 - 60 - 20, false},
		"jumbo":                      {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24")}, 9000, 9000 - 60 - 20, false},
		"one v6 endpoint":            {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24"), node("n2", "[fd00::2]:1", "10.0.2.0/24")}, 1500, 1500 - 80 - 20, false},
		"own v6 endpoint":            {[]*corev1.Node{node("n1", "[fd00::1]:1", "10.0.1.0/24"), node("n2", "1.1.1.2:1", "10.0.2.0/24")}, 1500, 1500 - 80 - 20, false},
		"a node without v4 pods":     {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24"), node("n2", "1.1.1.2:1", dual)}, 1500, 1500 - 60 - 40, false},
		"a node without pods at all": {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24"), node("n2", "1.1.1.2:1")}, 1500, 1500 - 60 - 20, false},
		"all v6":                     {[]*corev1.Node{node("n1", "[fd00::1]:1", dual)}, 1500, 1500 - 80 - 40, false},
		"too small for v6":           {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24", dual)}, 1359, 1280, true},
		"too small for v6 elsewhere": {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24"), node("n2", "1.1.1.2:1", "10.0.2.0/24", dual)}, 1300, 1280, true},
		"too small for v6 alone":     {[]*corev1.Node{node("n1", "[fd00::1]:1", dual)}, 1399, 1280, true},
		"just large enough":          {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24", dual)}, 1360, 1280, false},
		"small, v4 alone":            {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24")}, 1359, 1279, false},
		"smallest, v4 alone":         {[]*corev1.Node{node("n1", "1.1.1.1:1", "10.0.1.0/24")}, 576, 496, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, self := range test.nodes {
				r := translate.Translate(kube.Objects{Nodes: test.nodes}, translate.Options{Node: self.Name, UnderlayMTU: test.underlay})
				if r.Netstack.MTU != test.want {
					t.Errorf("on %s: got %d, want %d", self.Name, r.Netstack.MTU, test.want)
				}
				warned := strings.Contains(problemTexts(r.Problems), "underlay MTU")
				if warned != test.warn {
					t.Errorf("on %s: problems are %v", self.Name, r.Problems)
				}
			}
		})
	}
}

func problemTexts(list []kube.Problem) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(string(p.Severity) + ": " + p.String() + "\n")
	}
	return b.String()
}

func TestCheckLooksAtUnusedSecrets(t *testing.T) {
	objs := load(t, "ingress")
	objs.Ingresses = nil
	got := problemTexts(translate.Check(objs))
	if !strings.Contains(got, "Secret default/wrong-key: data[tls.key]: the key pair cannot be used") {
		t.Errorf("got %s", got)
	}
	if strings.Contains(got, "no-pem") || strings.Contains(got, "default/good") {
		t.Errorf("complains of Secrets that are good or not of type kubernetes.io/tls: %s", got)
	}
}

func load(t testing.TB, name string) kube.Objects {
	t.Helper()
	path := filepath.Join("testdata", name+".in.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	objs, err := codec.Decode(path, data)
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// allJSON returns every object as JSON.
func allJSON(t testing.TB, objs kube.Objects) string {
	var b strings.Builder
	for obj := range objs.All() {
		doc, err := json.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(doc)
	}
	return b.String()
}

// FuzzTranslate changes one scalar of a valid case and checks what must hold for any input: no panic, the same Result
// for the same Objects, unchanged Objects, and no address or port that must not occur in packets.
func FuzzTranslate(f *testing.F) {
	names, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(names) == 0 {
		f.Fatal("no cases", err)
	}
	var seeds []kube.Objects
	for _, name := range names {
		seeds = append(seeds, load(f, strings.TrimSuffix(filepath.Base(name), ".in.yaml")))
	}
	for i := range seeds {
		for _, text := range []string{`""`, `"::ffff:1.2.3.4"`, `-1`, `null`, `"fe80::1%x"`, `["10.0.0.0/0"]`, `"255.255.255.255"`} {
			f.Add(uint(i), uint(7*i), text)
		}
	}
	f.Fuzz(func(t *testing.T, which, at uint, text string) {
		seed := seeds[which%uint(len(seeds))]
		objs, ok := mutate(t, seed, at, text)
		if !ok {
			t.Skip()
		}
		before := allJSON(t, objs)
		for _, node := range []string{"n1", "absent"} {
			r := translate.Translate(objs, translate.Options{Node: node})
			checkInvariants(t, r)
			again := translate.Translate(objs, translate.Options{Node: node})
			if diff := cmp.Diff(render(r), render(again)); diff != "" {
				t.Fatalf("not pure:\n%s", diff)
			}
		}
		manifests.Validate(objs)
		controlplane.EndpointSlices(objs.Pods, objs.Services)
		if allJSON(t, objs) != before {
			t.Fatal("the Objects have been changed")
		}
	})
}

func checkInvariants(t *testing.T, r translate.Result) {
	for _, s := range r.Services.Services.All() {
		for _, a := range s.ClusterIPs {
			if !a.IsValid() || a.Is4In6() || a.IsLoopback() || a.Zone() != "" {
				t.Fatalf("cluster address %v", a)
			}
		}
		for _, e := range s.Endpoints {
			if !e.Addr.IsValid() || e.Addr.Is4In6() || e.Addr.IsLoopback() || e.ID == "" {
				t.Fatalf("endpoint %+v", e)
			}
			for _, p := range e.Ports {
				if p.Port == 0 || p.Protocol == 0 {
					t.Fatalf("endpoint port %+v", p)
				}
			}
		}
	}
	var prefixes []netip.Prefix
	for _, p := range r.Overlay.Peers {
		if p.ID == 0 {
			t.Fatal("a peer without identity")
		}
		for _, q := range p.Prefixes {
			if !q.IsValid() || q != q.Masked() || q.Addr().Is4In6() {
				t.Fatalf("prefix %v", q)
			}
		}
		prefixes = append(prefixes, p.Prefixes...)
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range prefixes {
		if seen[p] {
			t.Fatalf("two peers have %v", p)
		}
		seen[p] = true
	}
	for _, p := range r.Problems {
		if p.Message == "" || p.Object.Kind == "" {
			t.Fatalf("problem %+v", p)
		}
	}
}

// mutate replaces scalar number at of one object by a JSON value.
func mutate(t *testing.T, seed kube.Objects, at uint, text string) (kube.Objects, bool) {
	var value any
	if json.Unmarshal([]byte(text), &value) != nil {
		value = text
	}
	var docs []string
	var trees []any
	count := uint(0)
	for obj := range seed.All() {
		doc, err := json.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		var tree any
		if err := json.Unmarshal(doc, &tree); err != nil {
			t.Fatal(err)
		}
		walk(tree, func(any) any { count++; return nil })
		trees = append(trees, tree)
	}
	if count == 0 {
		return kube.Objects{}, false
	}
	target, i := at%count, uint(0)
	for _, tree := range trees {
		walk(tree, func(old any) any {
			i++
			if i-1 == target {
				return value
			}
			return nil
		})
		doc, err := json.Marshal(tree)
		if err != nil {
			return kube.Objects{}, false
		}
		docs = append(docs, string(doc))
	}
	objs, err := codec.Decode("fuzz", []byte(strings.Join(docs, "\n---\n")))
	return objs, err == nil
}

// walk calls f for every scalar, and stores the result of f unless it is nil.
func walk(x any, f func(any) any) {
	visit := func(child any, store func(any)) {
		switch child.(type) {
		case map[string]any, []any:
			walk(child, f)
		default:
			if v := f(child); v != nil {
				store(v)
			}
		}
	}
	switch x := x.(type) {
	case map[string]any:
		for _, key := range sortedKeys(x) {
			visit(x[key], func(v any) { x[key] = v })
		}
	case []any:
		for i := range x {
			visit(x[i], func(v any) { x[i] = v })
		}
	}
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

func BenchmarkTranslate(b *testing.B) {
	objs := load(b, "services")
	b.ReportAllocs()
	for b.Loop() {
		translate.Translate(objs, translate.Options{Node: "n1"})
	}
}

func TestLeaving(t *testing.T) {
	now := metav1.Unix(1, 0)
	for name, test := range map[string]struct {
		node *corev1.Node
		want bool
	}{
		"stays":         {&corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "other"}}}}, false},
		"deleted":       {&corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}}, true},
		"to be deleted": {&corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}}}, true},
	} {
		test.node.Name = "n1"
		other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n0", DeletionTimestamp: &now}}
		r := translate.Translate(kube.Objects{Nodes: []*corev1.Node{other, test.node}}, translate.Options{Node: "n1"})
		if r.Leaving != test.want {
			t.Errorf("%s: leaving %v, want %v", name, r.Leaving, test.want)
		}
	}
}
