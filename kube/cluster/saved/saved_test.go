package saved

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policyapi"
)

var here = Owner{Node: "n1", Cluster: "c"}

// kinds returns all kinds that are read from an API server.
func kinds() []*kube.Kind {
	return slices.DeleteFunc(slices.Clone(kube.Kinds()), func(k *kube.Kind) bool { return k.Use&kube.InCluster == 0 })
}

// oneOfEach returns an object of each kind, and a Node with ranges.
func oneOfEach() *kube.Objects {
	var all kube.Builder
	for _, k := range kinds() {
		obj := k.New()
		obj.SetName(strings.ToLower(k.Name))
		obj.SetUID(types.UID("uid of " + k.Name))
		if _, is := obj.(*kube.OtherPod); !is { // which has none
			obj.SetAnnotations(map[string]string{kube.FeaturesAnnotation: "x", "b": "y"})
		}
		if !k.ClusterScoped {
			obj.SetNamespace("x")
		}
		all.Add(obj, "")
	}
	all.Add(node("10.244.1.0/24"), "")
	objs := all.Objects()
	objs.EgressAddresses[0].Spec.Addresses = []string{"192.0.2.77"}
	objs.ClusterNetworkPolicies[0].Spec.Egress = []policyapi.Rule{{Action: policyapi.ActionAccept, Unread: []string{"an unknown field"}}}
	objs.Secrets[0].Data = map[string][]byte{corev1.TLSPrivateKeyKey: []byte("hidden")}
	objs.Sort()
	return &objs
}

func node(ranges ...string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: ranges}}
}

// written returns the content of a file with objs.
func written(t testing.TB, owner Owner, kinds []*kube.Kind, objs *kube.Objects) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := encode(&b, owner, withoutSecrets(kinds), objs, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	if int(n) != b.Len() {
		t.Fatalf("%d bytes are said to be written, and %d are", n, b.Len())
	}
	return b.Bytes()
}

// put writes a file as the agent would.
func put(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "objects")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRoundTrip: every kind comes back as it was, but Secrets, which are never written.
func TestRoundTrip(t *testing.T) {
	objs := oneOfEach()
	data := written(t, here, kinds(), objs)
	if bytes.Contains(data, []byte("hidden")) || bytes.Contains(data, []byte("Secret")) {
		t.Error("a Secret is in the file")
	}
	path := put(t, data)
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	got, until, err := Load(path, here, kinds())
	if err != nil || !until.Equal(at) {
		t.Fatal(until, err)
	}
	objs.Secrets = nil
	if !equality.Semantic.DeepEqual(slices.Collect(objs.All()), slices.Collect(got.All())) {
		t.Errorf("it comes back as\n%+v\nand was\n%+v", got, *objs)
	}
	if n := got.Len(); n != len(kinds()) {
		t.Errorf("%d objects", n)
	}
}

// TestDamage: a file of which any byte is another, or any byte at the end is missing, is left out whole.
func TestDamage(t *testing.T) {
	data := written(t, here, kinds(), oneOfEach())
	if _, err := decode(data, here, kinds()[:1]); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for _, bit := range []byte{1, 0x80} {
			bad := slices.Clone(data)
			bad[i] ^= bit
			if objs, err := decode(bad, here, withoutSecrets(kinds())); err == nil || objs.Len() > 0 {
				t.Errorf("byte %d is another: %d objects, %v", i, objs.Len(), err)
			}
		}
		if objs, err := decode(data[:i], here, withoutSecrets(kinds())); err == nil || objs.Len() > 0 {
			t.Errorf("it ends after %d bytes: %d objects, %v", i, objs.Len(), err)
		}
	}
	if _, err := decode(append(slices.Clone(data), 0), here, withoutSecrets(kinds())); !errors.Is(err, errDamaged) {
		t.Errorf("more at the end: %v", err)
	}
}

// signed returns text with the checksum behind it.
func signed(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return append([]byte(text), sum[:]...)
}

// TestOthers: the snapshot of somebody else is left out, and the reason says whose it is.
func TestOthers(t *testing.T) {
	all := withoutSecrets(kinds())
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"node":        {written(t, Owner{"n2", "c"}, all, oneOfEach()), `it is of node "n2", and this is node "n1"`},
		"cluster":     {written(t, Owner{"n1", "d"}, all, oneOfEach()), "it is of another cluster"},
		"kinds":       {written(t, here, all[1:], oneOfEach()), "it has no " + all[0].Plural + ", which this agent reads"},
		"version":     {signed(fmt.Sprintf("%s%d\n{}\n", first, Version+1)), fmt.Sprintf("it has version %q", fmt.Sprint(Version+1))},
		"text":        {[]byte("something else\n"), "it is damaged"},
		"nothing":     {nil, "it is damaged"},
		"no header":   {signed(fmt.Sprintf("%s%d\nx\n", first, Version)), "it is damaged"},
		"no object":   {signed(fmt.Sprintf("%s%d\n%s\n\x00\x01\xff", first, Version, `{"node":"n1","cluster":"c","kinds":["Service"]}`)), "it is damaged"},
		"no kind":     {signed(fmt.Sprintf("%s%d\n%s\n\x01\x00", first, Version, `{"node":"n1","cluster":"c","kinds":["Service"]}`)), "it is damaged"},
		"no end":      {signed(fmt.Sprintf("%s%d\n%s\n\x00\x05x", first, Version, `{"node":"n1","cluster":"c","kinds":["Service"]}`)), "it is damaged"},
		"strange one": {signed(fmt.Sprintf("%s%d\n%s\n\x00\x00", first, Version, `{"node":"n1","cluster":"c","kinds":["Marvel"]}`)), "it has no"},
	} {
		ask := all
		if strings.HasPrefix(name, "no ") {
			ask = []*kube.Kind{kube.KindNamed("Service")}
		}
		objs, _, err := Load(put(t, c.data), here, ask)
		if err == nil || !strings.Contains(err.Error(), c.want) || objs.Len() > 0 {
			t.Errorf("%s: %d objects, %v, want %s", name, objs.Len(), err, c.want)
		}
	}
	if _, _, err := Load(filepath.Join(t.TempDir(), "objects"), here, all); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestMoreKinds: a file with kinds that this agent does not read, or does not know, is one for it without them.
func TestMoreKinds(t *testing.T) {
	only := []*kube.Kind{kube.KindNamed("Node")}
	objs, _, err := Load(put(t, written(t, here, kinds(), oneOfEach())), here, only)
	if err != nil || objs.Len() != 2 || len(objs.Nodes) != 2 {
		t.Errorf("%d objects, %v", objs.Len(), err)
	}
	strange := signed(fmt.Sprintf("%s%d\n%s\n\x00\x01\xff\x01\x00", first, Version, `{"node":"n1","cluster":"c","kinds":["Marvel","Node"]}`))
	if objs, err := decode(strange, here, only); err != nil || len(objs.Nodes) != 1 {
		t.Errorf("%d objects, %v", objs.Len(), err)
	}
}

// TestTooLarge: no more is written, or read, than a file may have.
func TestTooLarge(t *testing.T) {
	objs := &kube.Objects{Nodes: []*corev1.Node{node("10.244.1.0/24")}}
	s := &corev1.Service{}
	s.Annotations = map[string]string{"x": strings.Repeat("x", 1<<20)}
	for range maxBytes>>20 + 1 {
		objs.Services = append(objs.Services, s)
	}
	var n counting
	if _, err := encode(&n, here, withoutSecrets(kinds()), objs, maxBytes); !errors.Is(err, errTooLarge) || n > maxBytes {
		t.Errorf("%d bytes are written: %v", n, err)
	}
	path := put(t, nil)
	if err := os.Truncate(path, maxBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(path, here, kinds()); !errors.Is(err, errTooLarge) {
		t.Errorf("a large file is read: %v", err)
	}
}

// TestWhoWroteIt: only what nobody but the agent's own user can have written is believed.
func TestWhoWroteIt(t *testing.T) {
	for _, c := range []struct {
		mode  fs.FileMode
		owner int
		links uint64
		want  string
	}{
		{0o600, 7, 1, ""},
		{0o644, 7, 1, ""},
		{0o620, 7, 1, "others may write it"},
		{0o602, 7, 1, "others may write it"},
		{0o600, 8, 1, "it belongs to user 8"},
		{0o600, 0, 1, "it belongs to user 0"},
		{0o600, 7, 2, "second name"},
		{0o600 | fs.ModeNamedPipe, 7, 1, "no regular file"},
		{0o600 | fs.ModeDir, 7, 2, "no regular file"},
	} {
		err := judge(c.mode, c.owner, c.links, 7)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v of %d with %d names: %v, want %q", c.mode, c.owner, c.links, err, c.want)
		}
	}
	good := put(t, written(t, here, kinds(), oneOfEach()))
	refused := func(what, path string) {
		t.Helper()
		if objs, _, err := Load(path, here, kinds()); err == nil || objs.Len() > 0 {
			t.Errorf("%s: %d objects are believed", what, objs.Len())
		}
	}
	link, pipe := filepath.Join(t.TempDir(), "objects"), filepath.Join(t.TempDir(), "objects")
	if err := errors.Join(os.Symlink(good, link), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	refused("a link", link)
	refused("a pipe", pipe)
	if _, _, err := Load(good, here, kinds()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(good, 0o666); err != nil {
		t.Fatal(err)
	}
	refused("a file for everybody", good)
}

// FuzzDecode: whatever stands behind a valid checksum is objects or an error.
func FuzzDecode(f *testing.F) {
	data := written(f, here, kinds(), oneOfEach())
	f.Add(data[:len(data)-sha256.Size])
	f.Add([]byte(fmt.Sprintf("%s%d\n%s\n\x00\x05x", first, Version, `{"node":"n1","cluster":"c","kinds":["Node"]}`)))
	f.Fuzz(func(t *testing.T, body []byte) {
		objs, err := decode(signed(string(body)), here, withoutSecrets(kinds()))
		if err != nil && objs.Len() > 0 {
			t.Errorf("%d objects with %v", objs.Len(), err)
		}
	})
}

// large returns a cluster of n Services with 10 endpoints each.
func large(n int) *kube.Objects {
	var all kube.Builder
	all.Add(node("10.244.1.0/24"), "")
	ready := true
	for i := range n {
		name := fmt.Sprintf("service-%05d", i)
		all.Add(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
		}, "")
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-abcde", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		for j := range 10 {
			nodeName := fmt.Sprintf("node-%03d", j)
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.128.%d.%d", i%250, j)}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready}, NodeName: &nodeName,
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprintf("pod-%d-%d", i, j), UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i*10+j))},
			})
		}
		all.Add(slice, "")
	}
	objs := all.Objects()
	return &objs
}

// BenchmarkWrite is what 10,000 Services of 10 endpoints cost.
func BenchmarkWrite(b *testing.B) {
	objs := large(10_000)
	b.ReportAllocs()
	for b.Loop() {
		var n counting
		if _, err := encode(&n, here, withoutSecrets(kinds()), objs, maxBytes); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(n))
		b.ReportMetric(float64(n)/1e6, "MB")
	}
}

type counting int64

func (c *counting) Write(p []byte) (int, error) { *c += counting(len(p)); return len(p), nil }

// BenchmarkLoad is what a start costs that begins with a saved snapshot of so many Services of 10 endpoints.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{10_000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := put(b, written(b, here, kinds(), large(n)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Load(path, here, kinds()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
