package manifests

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/test/await"
)

// watched runs Watch over a directory and remembers what it delivers.
type watched struct {
	t  *testing.T
	mu sync.Mutex
	// mu guards the rest.
	last      kube.Objects
	delivered int
	errs      []string
	changed   *sync.Cond
}

func watch(t *testing.T, dir string) *watched {
	w := &watched{t: t}
	w.changed = sync.NewCond(&w.mu)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	note := func(f func()) {
		w.mu.Lock()
		defer w.mu.Unlock()
		f()
		w.changed.Broadcast()
	}
	go func() {
		done <- Watch(ctx, dir, Options{OnError: func(err error) { note(func() { w.errs = append(w.errs, err.Error()) }) }},
			func(objs kube.Objects) { note(func() { w.last = objs; w.delivered++ }) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch ended with %v", err)
		}
	})
	return w
}

// until waits until ok returns true, and returns how long that took.
func (w *watched) until(what string, ok func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	timeout := time.AfterFunc(await.Patience+time.Second, w.changed.Broadcast)
	defer timeout.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !ok() {
		if time.Since(start) > await.Patience {
			w.t.Fatalf("not so after %v: %s; nodes are %q, errors %q", time.Since(start), what, nodeNames(w.last), w.errs)
		}
		w.changed.Wait()
	}
	return time.Since(start)
}

func (w *watched) untilNodes(want string) time.Duration {
	w.t.Helper()
	return w.until("nodes "+want, func() bool { return w.delivered > 0 && nodeNames(w.last) == want })
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, dir)
	w.untilNodes("") // a snapshot comes at once, even an empty one

	write(t, dir, "a.yaml", node("a"))
	w.untilNodes("a")
	write(t, dir, "b.yaml", node("b"))
	w.untilNodes("a b")

	// Editors save in several ways.
	write(t, dir, "a.yaml", node("a1")) // truncate and write
	w.untilNodes("a1 b")
	tmp := write(t, dir, ".a.yaml.swp", node("a2")) // rename over
	if err := os.Rename(tmp, filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	w.untilNodes("a2 b")
	if err := os.Rename(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "a.yaml~")); err != nil { // backup, new file
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", node("a3"))
	w.untilNodes("a3 b")

	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	w.untilNodes("a3")
	write(t, dir, "a.yaml", "")
	w.untilNodes("")
	write(t, dir, "a.yaml", node("a4"))
	w.untilNodes("a4")
}

// Kubernetes mounts a ConfigMap as symlinks through a symlinked folder that is swapped.
func TestWatchSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, ".v1/a.yaml", node("old"))
	write(t, dir, ".v2/a.yaml", node("new"))
	for _, link := range [][2]string{{".v1", ".data"}, {".data/a.yaml", "a.yaml"}} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	w := watch(t, dir)
	w.untilNodes("old")
	if err := os.Symlink(".v2", filepath.Join(dir, ".data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, ".data_tmp"), filepath.Join(dir, ".data")); err != nil {
		t.Fatal(err)
	}
	w.untilNodes("new")
}

func TestWatchKeepsTheLastGoodState(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", node("a"))
	w := watch(t, dir)
	w.untilNodes("a")
	write(t, dir, "a.yaml", node("a")+"spek: {}\n")
	w.until("an error", func() bool {
		return len(w.errs) == 1 && strings.Contains(w.errs[0], "a.yaml:4: Node a: spek: unknown field")
	})
	write(t, dir, "b.yaml", node("b")) // other files are read, and the error is not reported again
	w.untilNodes("a b")
	write(t, dir, "c.yaml", node("a")) // defined twice
	w.until("a second error", func() bool { return len(w.errs) == 2 && strings.Contains(w.errs[1], "already defined at") })
	write(t, dir, "c.yaml", node("c"))
	w.untilNodes("a b c")
	write(t, dir, "a.yaml", node("a5"))
	w.untilNodes("a5 b c")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) != 2 {
		t.Errorf("errors: %q", w.errs)
	}
}

// Nothing is delivered before everything could be read: a restart must not blank a cluster.
func TestWatchWaitsForAGoodStart(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", node("a"))
	write(t, dir, "b.yaml", "kind: [")
	w := watch(t, dir)
	w.until("an error", func() bool { return len(w.errs) == 1 })
	write(t, dir, "b.yaml", node("b"))
	w.untilNodes("a b")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.delivered != 1 {
		t.Errorf("%d snapshots, want one", w.delivered)
	}
}

func TestWatchStatus(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", node("n1"))
	w := watch(t, dir)
	w.untilNodes("n1")
	key := func() string { return w.last.Nodes[0].Annotations[kube.PublicKeyAnnotation] }
	for _, k := range []string{"one", "two"} { // the first one makes the folder
		if _, err := Publish(dir, kube.NodeStatus{Name: "n1", PublicKey: k, Endpoint: netip.MustParseAddrPort("1.2.3.4:5")}); err != nil {
			t.Fatal(err)
		}
		w.until("key "+k, func() bool { return key() == k })
	}
	write(t, dir, "status/n1.yaml", "kind: [") // a broken status file must not stop the rest
	w.until("an error", func() bool { return len(w.errs) == 1 })
	write(t, dir, "b.yaml", node("n2"))
	w.untilNodes("n1 n2")
	if err := os.RemoveAll(filepath.Join(dir, StatusDir)); err != nil {
		t.Fatal(err)
	}
	w.until("no key", func() bool { return key() == "" })
	if _, err := Publish(dir, kube.NodeStatus{Name: "n1", PublicKey: "three"}); err != nil {
		t.Fatal(err)
	}
	w.until("key three", func() bool { return key() == "three" })
}

func TestWatchIgnoresWhatSaysNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", node("a"))
	w := watch(t, dir)
	w.untilNodes("a")
	write(t, dir, "notes.txt", "x")
	write(t, dir, ".a.yaml.tmp", "x")
	write(t, dir, "a.yaml", node("a")) // the same content again
	write(t, dir, "b.yaml", node("b"))
	w.untilNodes("a b")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.delivered > 3 { // the writes may be one burst or several, but only b.yaml brings news
		t.Errorf("%d snapshots", w.delivered)
	}
}

func TestWatchNeedsADirectory(t *testing.T) {
	err := Watch(t.Context(), filepath.Join(t.TempDir(), "absent"), Options{}, func(kube.Objects) {})
	if err == nil || !strings.Contains(err.Error(), "expected a directory") {
		t.Errorf("got %v", err)
	}
}

// TestWatchLatency measures the time from a file to the snapshot, with as many objects as a lab has. Most of it is
// the debounce of 5 ms.
func TestWatchLatency(t *testing.T) {
	dir := t.TempDir()
	objs := manyObjects(50)
	if _, err := Write(dir, "lab.yaml", objs); err != nil {
		t.Fatal(err)
	}
	w := watch(t, dir)
	w.until("all objects", func() bool { return w.last.Len() == objs.Len() })
	best := time.Hour
	for i := range 10 {
		name := fmt.Sprintf("changed-%d", i)
		objs.Pods[0] = objs.Pods[0].DeepCopy()
		objs.Pods[0].Name = name
		start := time.Now()
		if _, err := Write(dir, "lab.yaml", objs); err != nil {
			t.Fatal(err)
		}
		w.until(name, func() bool { return w.last.Len() > 0 && hasPod(w.last, name) })
		best = min(best, time.Since(start))
	}
	t.Logf("best of 10: %v", best)
	if best > 20*time.Millisecond && !raceEnabled {
		t.Errorf("file to snapshot took %v at best, want less than 20 ms", best)
	}
}

func hasPod(objs kube.Objects, name string) bool {
	for _, p := range objs.Pods {
		if p.Name == name {
			return true
		}
	}
	return false
}

func manyObjects(n int) kube.Objects {
	var objs kube.Objects
	for i := range n {
		p := &corev1.Pod{}
		p.Namespace, p.Name, p.Labels = "default", fmt.Sprintf("pod-%d", i), map[string]string{"app": "x"}
		p.Spec.Containers = []corev1.Container{{Name: "c", Command: []string{"tapestry", "serve"}}}
		s := &corev1.Service{}
		s.Namespace, s.Name = "default", fmt.Sprintf("svc-%d", i)
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
		objs.Pods, objs.Services = append(objs.Pods, p), append(objs.Services, s)
	}
	return objs
}
