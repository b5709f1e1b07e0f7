package cluster

import (
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/translate"
)

func allRows() []row {
	c := &Cluster{Options: Options{Node: "n1", SecretsOf: translate.IngressSecrets}}
	return c.rows()
}

// Every kind InCluster has exactly one row. Its strip function keeps the identity of an object and drops what nobody
// reads.
func TestEveryKindHasARow(t *testing.T) {
	rows := map[*kube.Kind]row{}
	for _, r := range allRows() {
		if _, twice := rows[r.kind]; twice {
			t.Errorf("%s has two rows", r.kind.Name)
		}
		rows[r.kind] = r
	}
	for _, k := range kube.Kinds() {
		r, there := rows[k]
		if want := k.Use&kube.InCluster != 0; there != want {
			t.Errorf("%s has a row: %v, want %v", k.Name, there, want)
		}
		if !there {
			continue
		}
		if _, err := apimeta.ListAccessor(r.list()); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
		obj := r.one()
		m := obj.(metav1.Object)
		m.SetNamespace("x")
		m.SetName("y")
		m.SetUID("z")
		m.SetResourceVersion("7")
		m.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "m"}})
		m.SetAnnotations(map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "long"})
		if pod, ok := obj.(*corev1.Pod); ok {
			pod.Spec.NodeName, pod.Status.PodIP = "n2", "192.0.2.1"
		}
		r.strip(obj)
		if m.GetNamespace() != "x" || m.GetName() != "y" || m.GetUID() != "z" || m.GetResourceVersion() != "7" {
			t.Errorf("%s: stripped, it is another: %+v", k.Name, obj)
		}
		if len(m.GetManagedFields())+len(m.GetAnnotations()) > 0 {
			t.Errorf("%s: what nobody reads is kept: %+v", k.Name, obj)
		}
		s := r.newStore(func() {})
		if err := s.Replace([]any{obj}, "7"); err != nil {
			t.Error(err)
		}
		var objs kube.Objects
		if !s.put(&objs) || objs.Len() != 1 {
			t.Errorf("%s: stored, it is %d objects in a snapshot", k.Name, objs.Len())
		}
		for got := range objs.All() {
			if kube.KindOf(got) != k || got.GetUID() != "z" {
				t.Errorf("%s came to %s", k.Name, kube.RefOf(got))
			}
		}
	}
}

// TestRights checks that the manifests let an agent, and the controller, read every kind that it watches, and nothing
// else, and that the tables in the documents say the same. An agent may read no Secrets, except in named namespaces,
// which a test in deploy/render checks.
func TestRights(t *testing.T) {
	all := map[string]map[string][]string{"tapestry": {}, "tapestry-controller": {}}
	for doc := range strings.SplitSeq(read(t, "../../deploy/tapestry.yaml"), "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil || role.Kind != "ClusterRole" {
			continue
		}
		given := all[role.Name]
		for _, r := range role.Rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					key := group + "/" + resource
					given[key] = append(given[key], r.Verbs...)
				}
			}
		}
	}
	deploy, agent := read(t, "../../deploy/README.md"), read(t, "../../docs/agent.md")
	given, read := all["tapestry"], []string(nil)
	for _, r := range allRows() {
		resource := r.kind.Resource()
		for where, text := range map[string]string{"deploy/README.md": deploy, "docs/agent.md": agent} {
			if !strings.Contains(text, resource) {
				t.Errorf("%s does not say what %s are read for", where, resource)
			}
		}
		if r.single || r.unused { // rights to these are given with what uses them; see deploy/render
			continue
		}
		key := r.kind.Group.Name() + "/" + resource
		for _, verb := range []string{"get", "list", "watch"} {
			if !slices.Contains(given[key], verb) {
				t.Errorf("deploy/tapestry.yaml does not let an agent %s %s", verb, key)
			}
		}
		read = append(read, key) // of Pods twice
	}
	for _, key := range read {
		delete(given, key)
	}
	for _, k := range kube.Kinds() {
		key := k.Group.Name() + "/" + k.Resource()
		if k.Use&kube.InController == 0 {
			continue
		}
		if verbs := all["tapestry-controller"][key]; !slices.Equal(verbs, []string{"list", "watch"}) {
			t.Errorf("deploy/tapestry.yaml lets the controller %q %s, want list and watch", verbs, key)
		}
		delete(all["tapestry-controller"], key)
	}
	for who, given := range all {
		for key, verbs := range given {
			if slices.Contains(verbs, "watch") {
				t.Errorf("deploy/tapestry.yaml lets %s watch %s, which it does not", who, key)
			}
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
