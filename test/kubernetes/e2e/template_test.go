package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

// adapt changes the agents' pods until the test ends. It returns when all agents are as they should be.
func adapt(t *testing.T, change func(*corev1.PodSpec)) {
	t.Helper()
	rolled := func() error {
		ds, err := client.AppsV1().DaemonSets("kube-system").Get(context.Background(), "tapestry", metav1.GetOptions{})
		if err == nil && (ds.Status.ObservedGeneration != ds.Generation || int(ds.Status.UpdatedNumberScheduled) != len(state.Nodes) || int(ds.Status.NumberReady) != len(state.Nodes)) {
			err = fmt.Errorf("%+v", ds.Status)
		}
		return err
	}
	t.Cleanup(func() { eventually(t, 5*time.Minute, "the agents are as before", rolled) })
	retemplate(t, "tapestry", func(p *corev1.PodTemplateSpec) { change(&p.Spec) })
	eventually(t, 5*time.Minute, "agents that are otherwise", rolled)
}

// retemplate changes the template of one of Tapestry's DaemonSets. What it returns changes it back, and leaves the
// DaemonSet as if nobody had changed it. The end of the test does so, too.
func retemplate(t *testing.T, name string, change func(*corev1.PodTemplateSpec)) (back func(context.Context) error) {
	t.Helper()
	sets := client.AppsV1().DaemonSets("kube-system")
	set := func(ctx context.Context, template corev1.PodTemplateSpec) error {
		return retry.RetryOnConflict(retry.DefaultRetry, func() error {
			ds, err := sets.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			ds.Spec.Template = template
			_, err = sets.Update(ctx, ds, metav1.UpdateOptions{})
			return err
		})
	}
	was, err := sets.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	back = func(ctx context.Context) error {
		return errors.Join(set(ctx, was.Spec.Template), disown(ctx, name))
	}
	t.Cleanup(func() {
		if err := back(context.Background()); err != nil {
			t.Error(err)
		}
	})
	template := was.Spec.Template.DeepCopy()
	change(template)
	if err := set(t.Context(), *template); err != nil {
		t.Fatal(err)
	}
	return back
}

// disown leaves a DaemonSet as if nobody had changed it, so that the next server-side apply finds no conflict.
func disown(ctx context.Context, name string) error {
	sets := client.AppsV1().DaemonSets("kube-system")
	ds, err := sets.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	fields := slices.DeleteFunc(ds.ManagedFields, func(f metav1.ManagedFieldsEntry) bool {
		return f.Operation == metav1.ManagedFieldsOperationUpdate && f.Subresource == ""
	})
	patch, err := json.Marshal([]map[string]any{{"op": "replace", "path": "/metadata/managedFields", "value": fields}})
	if err != nil {
		return err
	}
	_, err = sets.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
	return err
}
