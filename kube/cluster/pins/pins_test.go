package pins

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
)

func keyed(name string, uid types.UID, key string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid}}
	if key != "" {
		n.Annotations = map[string]string{kube.PublicKeyAnnotation: key, "x": "y"}
	}
	return n
}

// TestPins plays one node's history, and checks after each state what is believed.
func TestPins(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	for _, step := range []struct {
		what    string
		node    *corev1.Node // nil when there is no Node
		guarded bool
		want    string // the key that is believed
		problem string
	}{
		{"no key yet", keyed("n", "1", ""), false, "", ""},
		{"the first is believed", keyed("n", "1", "A"), false, "A", ""},
		{"a change is refused", keyed("n", "1", "B"), false, "A", "has changed to B"},
		{"and again after a restart", keyed("n", "1", "B"), false, "A", "ValidatingAdmissionPolicy"},
		{"taken back", keyed("n", "1", "A"), false, "A", ""},
		{"it vanishes", keyed("n", "1", ""), false, "A", "has vanished"},
		{"guarded, a change is believed", keyed("n", "1", "B"), true, "B", ""},
		{"guarded, it may vanish", keyed("n", "1", ""), true, "", ""},
		{"the guard is gone: what it let through stays", keyed("n", "1", "B"), false, "B", ""},
		{"and the old key is a change", keyed("n", "1", "A"), false, "B", "has changed to A"},
		{"a new object begins anew", keyed("n", "2", "C"), false, "C", ""},
		{"the node is deleted", nil, false, "", ""},
		{"and made again", keyed("n", "3", "D"), false, "D", ""},
	} {
		p, err := Open(file, Rules{Self: "self"}) // as an agent that has just started
		if err != nil {
			t.Fatal(err)
		}
		var nodes []*corev1.Node
		if step.node != nil {
			nodes = append(nodes, step.node)
		}
		nodes = append(nodes, keyed("other", "9", "O"))
		var problems []kube.Problem
		got := p.Judge(Question{Nodes: nodes, Guarded: step.guarded}, &problems)
		if len(got) != len(nodes) || got[len(got)-1] != nodes[len(nodes)-1] {
			t.Errorf("%s: other nodes have changed", step.what)
		}
		if step.node != nil && got[0].Annotations[kube.PublicKeyAnnotation] != step.want {
			t.Errorf("%s: believed %q, want %q", step.what, got[0].Annotations[kube.PublicKeyAnnotation], step.want)
		}
		if step.problem == "" && len(problems) > 0 || step.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0].Message, step.problem)) {
			t.Errorf("%s: problems %v, want %q", step.what, problems, step.problem)
		}
		// The same question gets the same answer, by pointer; a change of another node keeps the copy.
		var more []kube.Problem
		if again := p.Judge(Question{Nodes: nodes, Guarded: step.guarded}, &more); !kube.Same(again, got) || len(more) != len(problems) {
			t.Errorf("%s: asked again, the answer is another", step.what)
		}
		if again := p.Judge(Question{Nodes: slices.Clone(nodes), Guarded: step.guarded}, &more); again[0] != got[0] {
			t.Errorf("%s: the copy has changed though nothing has", step.what)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Rules{}); err == nil || !strings.Contains(err.Error(), "repair or remove") {
		t.Errorf("a torn file: %v", err)
	}
	p, err := Open(filepath.Join(t.TempDir(), "no", "such"), Rules{})
	if err != nil {
		t.Fatal(err)
	}
	var problems []kube.Problem
	if p.Judge(Question{Nodes: []*corev1.Node{keyed("n", "1", "A")}}, &problems); len(problems) != 1 || !strings.Contains(problems[0].Message, "cannot be kept") {
		t.Errorf("keys that cannot be written: %v", problems)
	}
}

// A file of an agent that did not record addresses yet can be read, and its keys stay believed.
func TestFileOfBefore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(`{"n": {"uid": "1", "key": "A"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Open(file, Rules{})
	if err != nil {
		t.Fatal(err)
	}
	var problems []kube.Problem
	got := p.Judge(Question{Nodes: []*corev1.Node{keyed("n", "1", "B")}}, &problems)
	if key := got[0].Annotations[kube.PublicKeyAnnotation]; key != "A" || len(problems) != 1 {
		t.Errorf("believed %q, problems %v", key, problems)
	}
}
