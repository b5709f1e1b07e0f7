package cluster

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/saved"
)

var update = flag.Bool("update", false, "rewrite testdata/kept.txt")

// TestSavedVersion: an agent must not start with objects that have less than what it uses, so when more is kept of
// them, saved snapshots get another version. The file lists the version and all that is kept.
func TestSavedVersion(t *testing.T) {
	lines := []string{fmt.Sprintf("version %d", saved.Version)}
	for _, r := range allRows() {
		obj := r.kind.New()
		fill(reflect.ValueOf(obj).Elem(), 12)
		if n, ok := obj.(*corev1.Node); ok {
			n.Spec.Taints[0].Key = kube.ToBeDeletedTaint
			ready, network := n.Status.Conditions[0], n.Status.Conditions[0]
			ready.Type, network.Type = corev1.NodeReady, corev1.NodeNetworkUnavailable
			n.Status.Conditions = []corev1.NodeCondition{ready, network}
		}
		arrived := runtime.Object(obj)
		if r.names {
			arrived = apimeta.AsPartialObjectMetadata(obj)
		}
		if r.arrives != nil {
			arrived = r.one()
			fill(reflect.ValueOf(arrived).Elem(), 12)
		}
		r.strip(arrived)
		var paths []string
		walk(reflect.ValueOf(arrived).Elem(), r.kind.Name, &paths)
		slices.Sort(paths)
		lines = append(lines, slices.Compact(paths)...)
	}
	got := strings.Join(lines, "\n") + "\n"
	const file = "testdata/kept.txt"
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("what is kept of objects has changed: count saved.Version up, and write %s anew with -update.\n%s", file, got)
	}
}

// keys are keys of labels and annotations, each of which some kind keeps, and one that none does.
var keys = []string{
	"tapestry.dev/x", kube.ProblemsAnnotation, kube.PodIPsAnnotation, "service.kubernetes.io/x", "ingressclass.kubernetes.io/x", "kubernetes.io/ingress.class",
	corev1.AnnotationLoadBalancerSourceRangesKey, corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.EndpointsLastChangeTriggerTime,
	discoveryv1.LabelServiceName, "node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master", "app",
}

// fill sets every field of v, with one element in every list, down to a depth.
func fill(v reflect.Value, depth int) {
	if depth == 0 {
		return
	}
	switch x := v.Addr().Interface().(type) {
	case *metav1.Time:
		*x = metav1.Unix(1, 0)
		return
	case *time.Time:
		*x = time.Unix(1, 0)
		return
	case *map[string]string:
		*x = map[string]string{}
		for _, key := range keys {
			(*x)[key] = "x"
		}
		return
	case *map[string][]byte:
		*x = map[string][]byte{corev1.TLSCertKey: []byte("x"), corev1.TLSPrivateKeyKey: []byte("x"), "other": []byte("x")}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth-1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), depth-1)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth-1)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	}
}

// walk appends the paths of what is set in v.
func walk(v reflect.Value, path string, paths *[]string) {
	if v.IsZero() {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		walk(v.Elem(), path, paths)
	case reflect.Struct:
		before := len(*paths)
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				walk(v.Field(i), path+"."+f.Name, paths)
			}
		}
		if len(*paths) == before { // a time
			*paths = append(*paths, path)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			*paths = append(*paths, path)
			return
		}
		for i := range v.Len() {
			walk(v.Index(i), path+"[]", paths)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			*paths = append(*paths, path+"["+key.String()+"]")
		}
	default:
		*paths = append(*paths, path)
	}
}
