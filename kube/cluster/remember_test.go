package cluster

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/cluster/saved"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/test/await"
)

// in returns a change of Options: the state directory, and the log when it is not nil.
func in(dir string, log *syncBuffer) func(*Options) {
	return func(o *Options) {
		o.State = dir
		if log != nil {
			o.Logger = slog.New(slog.NewTextHandler(log, nil))
		}
	}
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestStartsWithoutServer: an agent that starts while no API server answers has what the one before had, says since
// when that is so, and goes over to the API server's objects, all at once, when it can read them.
func TestStartsWithoutServer(t *testing.T) {
	both(t, func(t *testing.T, s *clustertest.Server) {
		dir := t.TempDir()
		s.Put(service("a"), service("b"), node("n1"), ingress("i", "used"), secretOf("used", "one"))
		first := see(t, s, in(dir, nil))
		first.untilNames("Node n1, x/a, x/b, Ingress x/i, Secret x/used")
		await.Until(t, "all watches are open", func() bool { return first.State().Age == 0 })
		first.stop()
		s.Stop()
		s.Delete(service("b"))
		s.Put(service("c"))
		ended := time.Now()

		var log syncBuffer
		v := see(t, s, in(dir, &log))
		before := v.untilNames("Node n1, x/a, x/b, Ingress x/i")
		if want := []kube.Ref{{Kind: "Secret", Namespace: "x", Name: "used"}}; !slices.Equal(before.Awaited, want) {
			t.Errorf("not read are %v, want %v", before.Awaited, want)
		}
		h := v.State()
		if h.Synced || h.Saved.IsZero() || h.Saved.After(ended) || h.Age <= time.Since(ended) || len(h.Waiting) == 0 {
			t.Errorf("the state is %+v, %v after the end of the agent before", h, time.Since(ended))
		}
		if said := log.String(); !strings.Contains(said, "as they were saved on this node") {
			t.Errorf("the log says %s", said)
		}
		// What follows from old objects is told nobody, though the server may be back before its own are read.
		v.Publish(kube.NodeStatus{Name: "n1", PublicKey: "old"})
		v.Report(&before, []kube.Problem{{Severity: kube.Error, Object: kube.Ref{Kind: "Service", Namespace: "x", Name: "a"}, Message: "old"}}, nil)
		s.Start()
		after := v.untilNames("Node n1, x/a, x/c, Ingress x/i, Secret x/used")
		if before.Services[0] != after.Services[0] || before.Nodes[0] != after.Nodes[0] {
			t.Error("what has not changed is not the same any more")
		}
		if n := v.count(); n != 2 || len(after.Awaited) > 0 {
			t.Errorf("%d snapshots, not read are %v", n, after.Awaited)
		}
		await.Until(t, "no age", func() bool { h := v.State(); return h.Age == 0 && h.Synced && h.Saved.IsZero() })
		v.stop()
		if a, _ := s.NodeSays("n1"); a[kube.PublicKeyAnnotation] != "key of n1" || s.Events() != "" {
			t.Errorf("the server was told %v, %s", a, s.Events())
		}
	})
}

// TestSavedIsLastResort: while a server answers, saved objects are not used, unless it does not say everything in time.
func TestSavedIsLastResort(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(service("a"), node("n1"))
	first := see(t, s, in(dir, nil))
	first.untilNames("Node n1, x/a")
	first.stop()
	s.Delete(service("a"))

	var log syncBuffer
	second := see(t, s, in(dir, &log))
	second.untilNames("Node n1")
	if said := log.String(); second.count() != 1 || strings.Contains(said, "starting with the cluster") {
		t.Errorf("%d snapshots, and the log says %s", second.count(), said)
	}
	second.stop()

	s.Answer("services", 500)
	s.Put(service("b"))
	third := see(t, s, in(dir, &log))
	third.untilNames("Node n1")
	if h := third.State(); h.Synced || h.Saved.IsZero() || !h.Answers {
		t.Errorf("the state is %+v", h)
	}
}

// TestSavesWhenKilled: an agent that is killed leaves what it read, too.
func TestSavesWhenKilled(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(service("a"), node("n1"))
	first := see(t, s, in(dir, nil))
	first.untilNames("Node n1, x/a")
	file := filepath.Join(dir, savedFile)
	await.Until(t, "the file is there", func() bool { _, err := os.Stat(file); return err == nil })
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, savedFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	see(t, s, in(other, nil)).untilNames("Node n1, x/a")
}

// TestLeftOut: what is damaged, of another node or of another cluster is left out, and the log says why. The agent
// waits for an API server then.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	s, other := clustertest.New(t), clustertest.New(t)
	dir := t.TempDir()
	s.Put(service("a"), node("n1"))
	other.Put(service("z"), node("n1"), node("n2"))
	first := see(t, s, in(dir, nil))
	first.untilNames("Node n1, x/a")
	first.stop()
	s.Stop()
	good, err := os.ReadFile(filepath.Join(dir, savedFile))
	if err != nil {
		t.Fatal(err)
	}
	other.Stop()
	for want, c := range map[string]struct {
		data   []byte
		server *clustertest.Server
		change func(*Options)
	}{
		"it is damaged":             {good[:len(good)-1], s, nil},
		"it is of node":             {good, s, func(o *Options) { o.Node = "n2" }},
		"it is of another cluster":  {good, other, nil},
		"others may write it":       {nil, s, nil},
		"it has version":            {bytes.Replace(good, fmt.Appendf(nil, "objects %d\n", saved.Version), []byte("objects 700\n"), 1), s, nil},
		"starting with the cluster": {good, s, nil},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, savedFile)
		if c.data == nil {
			c.data = good
		}
		if err := os.WriteFile(file, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if want == "others may write it" {
			if err := os.Chmod(file, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		var log syncBuffer
		v := see(t, c.server, in(dir, &log), func(o *Options) {
			if c.change != nil {
				c.change(o)
			}
		})
		await.Until(t, want, func() bool { return strings.Contains(log.String(), want) })
		h := v.State()
		if taken := want == "starting with the cluster"; taken == h.Saved.IsZero() || !taken && v.count() > 0 {
			t.Errorf("%s: %d snapshots, %+v", want, v.count(), h)
		}
		v.stop()
	}
}

// TestFewerRights: of a kind that the API server no longer lets the agent read, nothing that was saved stays.
func TestFewerRights(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(service("a"), node("n1"), ingress("i", ""))
	first := see(t, s, in(dir, nil))
	first.untilNames("Node n1, x/a, Ingress x/i")
	first.stop()
	s.Answer("ingresses", 403)
	see(t, s, in(dir, nil)).untilNames("Node n1, x/a")
}

// TestRefusedEgressAddresses: an API server that does not let the agent read EgressAddresses does not make it forget
// them, since their pods would leave from another address. One that does not know the kind has none.
func TestRefusedEgressAddresses(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(service("a"), node("n1"), &v1alpha1.EgressAddress{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	has := func(v *view, want string) {
		t.Helper()
		v.untilNames(want)
		if v.count() != 1 {
			t.Errorf("%d snapshots until there are %s, want one", v.count(), want)
		}
	}
	first := see(t, s, in(dir, nil))
	has(first, "Node n1, x/a, EgressAddress shop")
	first.stop()

	s.Answer("egressaddresses", 403)
	refused := see(t, s, in(dir, nil))
	has(refused, "Node n1, x/a, EgressAddress shop")
	if waiting := refused.State().Waiting; len(waiting) != 1 || !strings.Contains(waiting[0], "EgressAddresses") {
		t.Errorf("it waits for %v", waiting)
	}
	refused.stop()

	s.Answer("egressaddresses", 404)
	has(see(t, s, in(dir, nil)), "Node n1, x/a")
}

// TestOldNodesTeachNothing: what is believed of nodes does not change by a snapshot from before. A key that was seen
// after the snapshot was saved stays the one that is believed.
func TestOldNodesTeachNothing(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(node("n1"))
	first := see(t, s, in(dir, nil))
	first.untilNames("Node n1")
	first.stop()
	old, err := os.ReadFile(filepath.Join(dir, savedFile))
	if err != nil {
		t.Fatal(err)
	}
	s.Put(node("n2"))
	second := see(t, s, in(dir, nil))
	second.untilNames("Node n1, Node n2")
	second.stop()
	s.Stop()
	// As if the last snapshot had not been written before the agent was killed.
	if err := os.WriteFile(filepath.Join(dir, savedFile), old, 0o600); err != nil {
		t.Fatal(err)
	}
	v := see(t, s, in(dir, nil))
	v.untilNames("Node n1")
	forged := node("n2")
	forged.Annotations[kube.PublicKeyAnnotation] = "forged"
	s.Put(forged)
	s.Start()
	objs := v.until("the first key of n2, and that another is refused", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.Nodes) == 2 && len(problems) > 0
	})
	if key := objs.Nodes[1].Annotations[kube.PublicKeyAnnotation]; key != "key of n2" {
		t.Errorf("the key that is believed of n2 is %q", key)
	}
}

// TestPodIPsOfBefore: without an API server, a pod gets the addresses that its saved object asks for; with one, those
// that the pod of that name asks for now.
func TestPodIPsOfBefore(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}}
	pod.Namespace, pod.Name, pod.Annotations = "x", "a", map[string]string{kube.PodIPsAnnotation: "10.244.1.5"}
	s.Put(node("n1"), pod)
	first := see(t, s, in(dir, nil))
	first.untilNames("Node n1, Pod x/a")
	first.stop()
	s.Stop()
	v := see(t, s, in(dir, nil))
	v.untilNames("Node n1, Pod x/a")
	await.Until(t, "it is known that no server answers", func() bool { return v.State().Err != nil })
	if got, err := v.PodIPs(t.Context(), "x", "a"); err != nil || got != "10.244.1.5" {
		t.Errorf("without a server: %q, %v", got, err)
	}
	// A server that says of no kind all that there is.
	s.Answer("services", 500)
	pod.Annotations[kube.PodIPsAnnotation] = "10.244.1.6"
	s.Put(pod)
	s.Start()
	await.Until(t, "there is a server", func() bool { _, err := v.link.State(); return err == nil })
	if got, err := v.PodIPs(t.Context(), "x", "a"); err != nil || got != "10.244.1.6" || v.State().Synced {
		t.Errorf("with a server: %q, %v", got, err)
	}
}
