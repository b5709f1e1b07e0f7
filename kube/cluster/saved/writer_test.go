package saved

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
)

// writing runs a Writer on a file in dir until the returned func is called.
func writing(dir string, change func(*Options)) (w *Writer, stop func()) {
	o := Options{Path: filepath.Join(dir, "objects"), Owner: here, Kinds: kinds(), Current: func() bool { return true }, Changed: func() {}}
	if change != nil {
		change(&o)
	}
	w = NewWriter(o, &kube.Objects{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	return w, func() { cancel(); <-done }
}

// load returns the names of the Services in the file of w, "-" when there is no file.
func load(t *testing.T, w *Writer) string {
	t.Helper()
	objs, _, err := Load(w.Path, here, kinds())
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	}
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, s := range objs.Services {
		list = append(list, s.Name)
	}
	return strings.Join(list, " ")
}

func snapshot(ranges []string, services ...string) *kube.Objects {
	objs := &kube.Objects{Nodes: []*corev1.Node{node(ranges...)}}
	for _, name := range services {
		s := &corev1.Service{}
		s.Name = name
		objs.Services = append(objs.Services, s)
	}
	return objs
}

var ranges = []string{"10.244.1.0/24"}

// TestWrites: the first snapshot is written at once, later ones together after a rest, and the last when the Writer is
// stopped. Nothing is left beside the file.
func TestWrites(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, stop := writing(dir, nil)
		w.Want(snapshot(nil, "none"))
		synctest.Wait()
		if got := load(t, w); got != "-" {
			t.Errorf("a snapshot with which no agent could start is written: %s", got)
		}
		w.Want(snapshot(ranges, "a"))
		synctest.Wait()
		if got := load(t, w); got != "a" {
			t.Errorf("the first: %s", got)
		}
		w.Want(snapshot(ranges, "a", "b"))
		time.Sleep(leastRest - time.Millisecond)
		w.Want(snapshot(ranges, "a", "b", "c"))
		synctest.Wait()
		if got := load(t, w); got != "a" {
			t.Errorf("after less than the rest: %s", got)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if got := load(t, w); got != "a b c" {
			t.Errorf("after the rest: %s", got)
		}
		w.Want(snapshot(ranges, "d"))
		stop()
		if got := load(t, w); got != "d" {
			t.Errorf("after the end: %s", got)
		}
		if info, err := os.Stat(w.Path); err != nil || info.Mode() != 0o600 {
			t.Errorf("the file is %v, %v", info.Mode(), err)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
			t.Errorf("in the directory are %v, %v", names, err)
		}
	})
}

// TestWritesLess: of what is too large the pods of other nodes are left out, and that is told. If the rest is too
// large, too, there is no file: the one before had other policies.
func TestWritesLess(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, stop := writing(dir, nil)
		w.most = 10_000
		step := func(what, want string, others, told bool, objs *kube.Objects) {
			t.Helper()
			w.Want(objs)
			time.Sleep(failedRest + time.Second)
			synctest.Wait()
			if got := load(t, w); got != want {
				t.Errorf("%s: the file has %s, want %s", what, got, want)
			}
			if all, _, err := Load(w.Path, here, kinds()); err == nil && (all.OtherPods.Len() > 0) != others {
				t.Errorf("%s: the file has %d pods of other nodes", what, all.OtherPods.Len())
			}
			if err := w.Err(); errors.Is(err, errTooLarge) != told {
				t.Errorf("%s: told is %v", what, err)
			}
		}
		with := func(pods int, services ...string) *kube.Objects {
			objs, list := snapshot(ranges, services...), []*kube.OtherPod(nil)
			for i := range pods {
				p := &kube.OtherPod{}
				p.Name = strings.Repeat("p", 100) + string(rune('a'+i%26))
				list = append(list, p)
			}
			objs.OtherPods = roll.From(list)
			return objs
		}
		step("small", "a", true, false, with(3, "a"))
		step("many pods", "b", false, true, with(200, "b"))
		step("small again", "c", true, false, with(3, "c"))
		step("a large Service", "-", false, true, with(3, strings.Repeat("s", 20_000)))
		step("and small", "d", true, false, with(3, "d"))
		stop()
	})
}

// TestWritesLittle: of a large cluster that changes all the time, a megabyte a second is written.
func TestWritesLittle(t *testing.T) {
	dir := t.TempDir()
	objs := large(500)
	synctest.Test(t, func(t *testing.T) {
		w, stop := writing(dir, nil)
		defer stop()
		var bytes int64
		var last uint64
		const minutes = 3
		for range minutes * 60 * 2 {
			next := *objs
			next.Services = slices.Clone(objs.Services)
			next.Services[0] = next.Services[0].DeepCopy()
			w.Want(&next)
			synctest.Wait()
			if info, err := os.Stat(w.Path); err != nil {
				t.Fatal(err)
			} else if inode := info.ModTime().UnixNano(); uint64(inode) != last {
				last = uint64(inode)
				bytes += info.Size()
			}
			time.Sleep(500 * time.Millisecond)
		}
		if limit := int64(minutes * 60 * perSecond); bytes > limit || bytes < limit/20 {
			t.Errorf("%d bytes in %d minutes, and the limit is %d", bytes, minutes, limit)
		}
	})
}

// TestSaysUntilWhen: the file's time follows the clock while its objects are the API server's, and stays when they are
// not, or when what it should have is not written yet.
func TestSaysUntilWhen(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var current atomic.Bool
		current.Store(true)
		w, stop := writing(dir, func(o *Options) { o.Current = current.Load })
		begun := time.Now()
		w.Want(snapshot(ranges, "a"))
		time.Sleep(time.Hour)
		until := func() time.Time {
			synctest.Wait()
			_, at, err := Load(w.Path, here, kinds())
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		if age := time.Since(until()); age > confirmEvery {
			t.Errorf("after an hour of no change, the objects are %v old", age)
		}
		current.Store(false)
		was := until()
		time.Sleep(time.Hour)
		stop()
		if at := until(); !at.Equal(was) || at.Before(begun) {
			t.Errorf("without an API server, the objects of %v are said to be of %v", was, at)
		}
	})
}

// TestOtherRanges: when the node has other pod ranges, the file is gone at once, before the next one is written. What
// was being written meanwhile does not come back.
func TestOtherRanges(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, stop := writing(dir, nil)
		w.Want(snapshot(ranges, "a"))
		synctest.Wait()
		w.Want(snapshot([]string{"10.244.9.0/24"}, "b"))
		if got := load(t, w); got != "-" {
			t.Errorf("there is a file with the old ranges: %s", got)
		}
		if _, err := w.replace(snapshot(ranges, "a"), time.Now(), 0); err != nil || load(t, w) != "-" {
			t.Errorf("the old ranges are back: %v", err)
		}
		stop()
		if got := load(t, w); got != "b" {
			t.Errorf("after the end: %s", got)
		}
	})
	// The agent that starts next knows from the file what the ranges were.
	objs, _, err := Load(filepath.Join(dir, "objects"), here, kinds())
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(Options{Path: filepath.Join(dir, "objects"), Owner: here, Kinds: kinds(), Current: func() bool { return true }, Changed: func() {}}, &objs)
	w.Want(snapshot(ranges, "c"))
	if got := load(t, w); got != "-" {
		t.Errorf("there is a file with the ranges of the agent before: %s", got)
	}
}

// smallDisk returns a directory with room for 256 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tapestry-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// writable has the small disk be one that takes nothing, or takes it again.
func writable(t *testing.T, dir string, is bool) {
	t.Helper()
	flags := uintptr(syscall.MS_REMOUNT)
	if !is {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount("tapestry-test", dir, "tmpfs", flags, "size=256k"); err != nil {
		t.Fatal(err)
	}
}

// TestCannotWritePolicies: when policies have changed and the disk does not take it, no older state stays: it makes the
// room, or there is none. What of it judges nobody stays, and so does what is on a disk that takes nothing at all,
// which is told. All of it ends by itself.
func TestCannotWritePolicies(t *testing.T) {
	policy := func(name string) *networkingv1.NetworkPolicy {
		p := &networkingv1.NetworkPolicy{}
		p.Name, p.Annotations = name, map[string]string{"a": strings.Repeat("x", 150_000)} // more than half of the disk
		return p
	}
	one, nodes := policy("one"), snapshot(ranges).Nodes
	with := func(p *networkingv1.NetworkPolicy, services ...string) *kube.Objects {
		objs := snapshot(ranges, services...)
		objs.Nodes = nodes
		objs.NetworkPolicies = []*networkingv1.NetworkPolicy{p}
		return objs
	}
	pod := with(one, "b")
	pod.Pods = []*corev1.Pod{{}}
	others := with(one, "b")
	others.Nodes = append(slices.Clone(nodes), &corev1.Node{})
	without := snapshot(ranges, "b")
	for name, tt := range map[string]struct {
		next              *kube.Objects
		broken            bool
		during, told, end string
	}{
		"a Service":            {with(one, "b"), false, "a", "no space", "b"},
		"a policy":             {with(policy("one"), "b"), false, "b", "", "b"},
		"a pod":                {pod, false, "b", "", "b"},
		"a node":               {others, false, "b", "", "b"},
		"the end of policies":  {without, true, "a", "cannot be removed", "b"},
		"a policy, and no way": {with(policy("two"), "b"), true, "a", "cannot be removed", "b"},
		"a policy, too large":  {with(policy("two"), "b", strings.Repeat("s", 150_000)), false, "-", "is removed", "b"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := smallDisk(t)
			synctest.Test(t, func(t *testing.T) {
				w, stop := writing(dir, nil)
				defer stop()
				w.Want(with(one, "a"))
				synctest.Wait()
				if got := load(t, w); got != "a" || w.Err() != nil {
					t.Fatalf("at first there is %s, %v", got, w.Err())
				}
				writable(t, dir, !tt.broken)
				w.Want(tt.next)
				time.Sleep(leastRest + time.Millisecond)
				synctest.Wait()
				got, told := load(t, w), ""
				if err := w.Err(); err != nil {
					told = err.Error()
				}
				if !strings.HasPrefix(got, tt.during) || (told != "") != (tt.told != "") || !strings.Contains(told, tt.told) {
					t.Errorf("there is %.20s, and told is %q; want %s, %q", got, told, tt.during, tt.told)
				}
				writable(t, dir, true)
				if err := syscall.Mount("tapestry-test", dir, "tmpfs", syscall.MS_REMOUNT, "size=1m"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(failedRest + time.Millisecond)
				synctest.Wait()
				if got := load(t, w); !strings.HasPrefix(got, tt.end) || w.Err() != nil {
					t.Errorf("with room there is %.20s, %v; want %s", got, w.Err(), tt.end)
				}
			})
		})
	}
}

// TestJudging: no kind of policies is forgotten.
func TestJudging(t *testing.T) {
	for _, k := range kube.Kinds() {
		if strings.Contains(k.Name, "NetworkPolicy") && k.Held() && len(judging([]kube.Object{k.New()})) != 1 {
			t.Errorf("%s judge nobody", k.Plural)
		}
	}
	if got := judging([]kube.Object{&corev1.Namespace{}, &corev1.Pod{}}); got != nil {
		t.Errorf("without policies %v judge", got)
	}
}

// TestCannotWrite: while there is no room, the file stays as it was, and that is told; afterwards it is written.
func TestCannotWrite(t *testing.T) {
	dir := smallDisk(t)
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Int32
		w, stop := writing(dir, func(o *Options) { o.Changed = func() { told.Add(1) } })
		defer stop()
		w.Want(snapshot(ranges, "a"))
		synctest.Wait()
		if err := w.Err(); err != nil || told.Load() > 0 {
			t.Fatal(err, told.Load())
		}
		filler := filepath.Join(dir, "filler")
		_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600) // as much as there is room for
		next := large(200)
		w.Want(next)
		time.Sleep(leastRest + time.Millisecond)
		synctest.Wait()
		if err := w.Err(); !errors.Is(err, syscall.ENOSPC) || told.Load() != 1 {
			t.Errorf("without room: %v, told %d times", err, told.Load())
		}
		if got := load(t, w); got != "a" {
			t.Errorf("without room there is %s", got)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
			t.Errorf("in the directory are %v, %v", names, err)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		time.Sleep(failedRest + time.Millisecond)
		synctest.Wait()
		if err := w.Err(); err != nil || told.Load() != 2 {
			t.Errorf("with room: %v, told %d times", err, told.Load())
		}
		if got := load(t, w); len(got) < 1000 {
			t.Errorf("with room there is %s", got)
		}
	})
}
