package main

import (
	"context"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// running is a cluster as Helm's lookup sees it, with one DaemonSet at the most.
type running struct {
	dynamic.NamespaceableResourceInterface
	daemonSet *appsv1.DaemonSet
}

func (r running) GetClientFor(string, string) (dynamic.NamespaceableResourceInterface, bool, error) {
	return r, true, nil
}

func (r running) Namespace(string) dynamic.ResourceInterface { return r }

func (r running) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	if r.daemonSet == nil || r.daemonSet.Name != name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Group: "apps", Resource: "daemonsets"}, name)
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(r.daemonSet)
	return &unstructured.Unstructured{Object: object}, err
}

// TestIDsStay: keeper and agent are who the values say, and where Tapestry is installed already, who its keeper is. The
// keeper that goes on over an update would refuse another.
func TestIDsStay(t *testing.T) {
	keeper := func(s *corev1.SecurityContext) *appsv1.DaemonSet {
		ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "tapestry-keeper"}}
		ds.Spec.Template.Spec.Containers = []corev1.Container{{Name: "keeper", SecurityContext: s}}
		return ds
	}
	user, group := int64(65532), int64(65533)
	for name, c := range map[string]struct {
		cluster     running
		user, group string
	}{
		"a new install":          {running{}, "60820", "60820"},
		"an earlier keeper":      {running{daemonSet: keeper(&corev1.SecurityContext{RunAsUser: &user, RunAsGroup: &group})}, "65532", "65533"},
		"a keeper without a say": {running{daemonSet: keeper(nil)}, "60820", "60820"},
	} {
		chart, err := loader.Load("../chart")
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]any{"apiServers": []any{"https://10.0.0.1:6443"}}
		all, err := chartutil.ToRenderValues(chart, values, chartutil.ReleaseOptions{Name: "tapestry", Namespace: "kube-system", IsUpgrade: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		texts, err := engine.RenderWithClientProvider(chart, all, c.cluster)
		if err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string][]string{
			"agent.yaml":  {"runAsUser: " + c.user, "runAsGroup: " + c.group, "- --uid=" + c.user, "- --group=" + c.group},
			"keeper.yaml": {"runAsUser: " + c.user, "runAsGroup: " + c.group, "- --uid=" + c.user + " #", `["--uid=` + c.user + `", "--group=` + c.group + `"`},
		} {
			text := texts["tapestry/templates/"+file]
			for _, w := range want {
				if !strings.Contains(text, w) {
					t.Errorf("%s: %s has no %q", name, file, w)
				}
			}
			if other := map[string]string{"60820": "65532", "65532": "60820"}[c.user]; strings.Contains(text, other) {
				t.Errorf("%s: %s names %s, too", name, file, other)
			}
		}
	}
}
