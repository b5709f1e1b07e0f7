package manifests

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func node(name string) string { return "apiVersion: v1\nkind: Node\nmetadata: {name: " + name + "}\n" }

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", node("b"))
	write(t, dir, "a.yml", node("a"))
	write(t, dir, "c.json", `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c"}}`)
	write(t, dir, ".hidden.yaml", node("hidden"))
	write(t, dir, "notes.txt", "not for us")
	write(t, dir, "sub/d.yaml", node("d"))
	write(t, dir, "status/a.yaml", node("a")+"status: {addresses: [{type: InternalIP, address: 1.2.3.4}]}\n")
	write(t, dir, "status/gone.yaml", node("gone"))
	other := write(t, t.TempDir(), "any-name", node("e"))

	objs, err := Read(dir, other)
	if err != nil {
		t.Fatal(err)
	}
	if got := nodeNames(objs); got != "a b c e" {
		t.Errorf("got nodes %s", got)
	}
	if a := objs.Nodes[0].Status.Addresses; len(a) != 1 || a[0].Address != "1.2.3.4" {
		t.Errorf("status was not laid over: %v", a)
	}
}

func nodeNames(objs kube.Objects) string {
	var names []string
	for _, n := range objs.Nodes {
		names = append(names, n.Name)
	}
	return strings.Join(names, " ")
}

func TestReadTellsAllMistakes(t *testing.T) {
	dir := t.TempDir()
	a := write(t, dir, "a.yaml", node("same")+"spek: 1\n---\n"+node("same"))
	b := write(t, dir, "b.yaml", node("same"))
	c := write(t, dir, "c.yaml", "a: [")
	_, err := Read(dir, filepath.Join(dir, "absent"))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		a + `:4: Node same: spek: unknown field (did you mean "spec"?)`,
		b + ":1: Node same: already defined at " + a + ":6: keep one of the two",
		c + ":1: this is not YAML",
		"absent: no such file or directory: expected a YAML file or a directory of them",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "nodes.yaml", node("n1")+"status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n---\n"+node("n2"))
	status := kube.NodeStatus{
		Name: "n1", PublicKey: "a-key", Endpoint: netip.MustParseAddrPort("10.0.0.1:51820"),
		Features: []string{kube.PartialChecksums, "another"},
		Addrs:    []netip.Addr{netip.MustParseAddr("10.9.9.9")},
		Reason:   "the host TAP is missing",
		Problems: []kube.Problem{{Severity: kube.Warning, Object: kube.Ref{Kind: "Pod", Namespace: "d", Name: "p"}, Message: "m"}},
	}
	if changed, err := Publish(dir, status); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if changed, err := Publish(dir, status); err != nil || changed {
		t.Fatalf("publishing the same again: changed %v, %v", changed, err)
	}
	status.Ready, status.Reason = true, ""
	if changed, err := Publish(dir, status); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if _, err := Publish(dir, kube.NodeStatus{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, StatusDir, ".*")); len(left) != 0 {
		t.Errorf("left behind %v", left)
	}

	objs, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	n1, n2 := objs.Nodes[0], objs.Nodes[1]
	if n1.Annotations[kube.PublicKeyAnnotation] != "a-key" || n1.Annotations[kube.EndpointAnnotation] != "10.0.0.1:51820" {
		t.Errorf("annotations are %v", n1.Annotations)
	}
	if got := n1.Annotations[kube.FeaturesAnnotation]; got != "partial-checksums,another" {
		t.Errorf("features are %q", got)
	}
	if got := n1.Annotations[kube.ProblemsAnnotation]; got != `[{"severity":"warning","object":{"kind":"Pod","namespace":"d","name":"p"},"message":"m"}]` {
		t.Errorf("problems are %s", got)
	}
	if c := n1.Status.Conditions; len(c) != 1 || c[0].Type != corev1.NodeReady || c[0].Status != corev1.ConditionTrue {
		t.Errorf("conditions are %+v", c)
	}
	if a := n1.Status.Addresses; len(a) != 1 || a[0].Address != "10.0.0.1" {
		t.Errorf("the written addresses were replaced by %v", a)
	}
	if a := n2.Status.Addresses; len(a) != 1 || a[0].Address != "10.0.0.2" {
		t.Errorf("the published addresses are missing: %v", a)
	}
	if _, said := n2.Annotations[kube.FeaturesAnnotation]; said || n2.Annotations[kube.ProblemsAnnotation] != "[]" {
		t.Errorf("annotations are %v", n2.Annotations)
	}
}

func TestPublishRefusesPaths(t *testing.T) {
	for _, name := range []string{"", "../n1", "a/b", "N1"} {
		if _, err := Publish(t.TempDir(), kube.NodeStatus{Name: name}); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	objs := kube.Objects{Nodes: []*corev1.Node{{}, {}}}
	objs.Nodes[0].Name, objs.Nodes[1].Name = "b", "a"
	for i, want := range []bool{true, false} {
		if changed, err := Write(dir, "x.yaml", objs); err != nil || changed != want {
			t.Errorf("write %d: changed %v, %v", i, changed, err)
		}
	}
	if objs.Nodes[0].Name != "b" || objs.Nodes[0].Kind != "" {
		t.Error("the input has been changed")
	}
	got, err := Read(dir)
	if err != nil || nodeNames(got) != "a b" || got.Nodes[0].Kind != "Node" {
		t.Errorf("read %v, %v", nodeNames(got), err)
	}
	if _, err := Write(filepath.Join(dir, "absent"), "x.yaml", objs); err == nil {
		t.Error("writing to a directory that does not exist worked")
	}
	if changed, err := Write(dir, "x.yaml", kube.Objects{}); err != nil || !changed {
		t.Errorf("emptying: changed %v, %v", changed, err)
	}
	if got, err := Read(dir); err != nil || got.Len() != 0 {
		t.Errorf("%d objects are left, %v", got.Len(), err)
	}
}
