package saved

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/roll"
)

const (
	// leastRest is how long a Writer rests after it has written.
	leastRest = 5 * time.Second
	// perSecond is how many bytes a Writer writes on average at most.
	perSecond = 1 << 20
	// failedRest is how long a Writer rests after it could not write.
	failedRest = 30 * time.Second
	// confirmEvery is how often the file's time is set while its objects are still those of the API server.
	confirmEvery = 30 * time.Second
)

// Options configures a Writer. All fields are required.
type Options struct {
	Path  string
	Owner Owner
	// Kinds are the kinds that a snapshot has.
	Kinds []*kube.Kind
	// Current reports whether the last snapshot is what the API server has now.
	Current func() bool
	// Changed is called when Err returns something else than before.
	Changed func()
}

// Writer keeps the last snapshot in a file. Make it with NewWriter.
type Writer struct {
	Options
	wake chan struct{} // capacity 1
	most int64         // the largest file, in bytes

	mu sync.Mutex
	// mu guards the rest. It is held while the file is replaced or removed, and not while it is written.
	objs    *kube.Objects // to be written; nil for nothing
	at      time.Time     // when objs were given
	ranges  []string      // the node's pod ranges in the file, and in what is being written
	written []kube.Object // what is in the file
	drops   int           // how often the file was removed
	err     error
}

// NewWriter returns a Writer that does nothing before Run. there are the objects in the file now, as Load returned
// them.
func NewWriter(o Options, there *kube.Objects) *Writer {
	o.Kinds = withoutSecrets(o.Kinds)
	w := &Writer{Options: o, wake: make(chan struct{}, 1), most: maxBytes, written: slices.Collect(there.All())}
	w.ranges = rangesOf(there, o.Owner.Node)
	return w
}

// withoutSecrets returns kinds without those that are never on disk.
func withoutSecrets(kinds []*kube.Kind) []*kube.Kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k *kube.Kind) bool { return k == kube.KindFor[*corev1.Secret]() })
}

// rangesOf returns the pod ranges of a node, none when there is no such Node.
func rangesOf(objs *kube.Objects, node string) []string {
	for _, n := range objs.Nodes {
		if n.Name == node {
			return kube.PodCIDRs(n)
		}
	}
	return nil
}

// Want has objs written in place of what was wanted before. It ignores a snapshot in which the node has no pod range:
// no agent could start with it. It does not wait for the disk but to remove the file.
func (w *Writer) Want(objs *kube.Objects) {
	ranges := rangesOf(objs, w.Owner.Node)
	if len(ranges) == 0 {
		return
	}
	w.mu.Lock()
	if w.ranges != nil && !slices.Equal(ranges, w.ranges) {
		if err := w.dropLocked(); err != nil {
			w.err = err
		}
	}
	w.objs, w.at, w.ranges = objs, time.Now(), ranges
	w.mu.Unlock()
	w.touch()
}

// dropLocked removes the file. What is being written meanwhile does not take its place.
func (w *Writer) dropLocked() error {
	w.drops++
	if err := os.Remove(w.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("what was kept before is out of date and cannot be removed, so that an agent that starts without an API server would go by it: %w", err)
	}
	w.written = nil
	return nil
}

// Err returns why the last snapshot could not be written, or nil.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Run writes until ctx is done, and once more then.
func (w *Writer) Run(ctx context.Context) {
	confirm := time.NewTicker(confirmEvery)
	defer confirm.Stop()
	for {
		select {
		case <-ctx.Done():
			w.write()
			w.confirm()
			return
		case <-confirm.C:
			w.confirm()
			continue
		case <-w.wake:
		}
		rest := w.write()
		if rest == 0 {
			continue
		}
		again := time.NewTimer(rest)
		select {
		case <-ctx.Done():
		case <-again.C:
			w.touch() // for what could not be written
		}
		again.Stop()
	}
}

func (w *Writer) touch() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// confirm sets the file's time, when its objects are still the API server's.
func (w *Writer) confirm() {
	if !w.Current() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.objs == nil && w.written != nil && w.err == nil {
		now := time.Now()
		_ = os.Chtimes(w.Path, now, now) // an older time makes the objects look older than they are, and does no harm
	}
}

// write writes what is wanted, and returns how long to rest.
func (w *Writer) write() (rest time.Duration) {
	w.mu.Lock()
	objs, at, drops, written := w.objs, w.at, w.drops, w.written
	w.objs = nil
	w.mu.Unlock()
	if objs == nil {
		return 0
	}
	var size int64
	var err, left error
	now := slices.Collect(objs.All())
	if !slices.Equal(now, written) {
		if size, left, err = w.put(objs, at, drops); err != nil && !slices.Equal(judging(now), judging(written)) {
			size, drops, left, err = w.putAlone(objs, at, drops)
		}
		rest = max(leastRest, time.Duration(size)*time.Second/perSecond)
	}
	w.mu.Lock()
	tell := cmp.Or(err, left)
	told := (tell == nil) != (w.err == nil) || tell != nil && tell.Error() != w.err.Error()
	w.err = tell
	switch {
	case err != nil:
		rest = failedRest
		if w.objs == nil {
			w.objs, w.at = objs, at
		}
	case w.drops == drops:
		w.written = now
	}
	w.mu.Unlock()
	if told {
		w.Changed()
	}
	return rest
}

// judging returns those of objects by which policies judge, and none where there are no policies.
func judging(list []kube.Object) (out []kube.Object) {
	policies := false
	for _, obj := range list {
		switch obj.(type) {
		case *networkingv1.NetworkPolicy, *policyapi.ClusterNetworkPolicy:
			policies, out = true, append(out, obj)
		case *corev1.Namespace, *corev1.Pod, *kube.OtherPod, *corev1.Node: // whom they name
			out = append(out, obj)
		}
	}
	if !policies {
		return nil
	}
	return out
}

// put replaces the file, unless it was removed since w.drops was drops. Of objects that are too large it leaves out the
// pods of other nodes: who they are is not known then, so policies deny them. left says so. If the rest is too large,
// too, it removes the file, as putAlone does.
func (w *Writer) put(objs *kube.Objects, at time.Time, drops int) (size int64, left, err error) {
	if size, err = w.replace(objs, at, drops); !errors.Is(err, errTooLarge) {
		return size, nil, err
	}
	left = fmt.Errorf("the pods of other nodes are left out: %w", err)
	less := *objs
	less.OtherPods = roll.List[*kube.OtherPod]{}
	if size, err = w.replace(&less, at, drops); errors.Is(err, errTooLarge) {
		w.mu.Lock()
		err = errors.Join(err, w.dropLocked())
		w.mu.Unlock()
	}
	return size, left, err
}

// putAlone removes the file and tries again, with the room that it had. An older state is not to be in force, nor its
// policies, after newer ones were: without a file nothing is served before an API server answers, and with it what
// somebody has closed would be open again. It returns w.drops as it is then.
func (w *Writer) putAlone(objs *kube.Objects, at time.Time, drops int) (size int64, now int, left, err error) {
	w.mu.Lock()
	if w.drops == drops {
		drops++
		err = w.dropLocked()
	}
	w.mu.Unlock()
	size, left, failed := w.put(objs, at, drops)
	switch {
	case failed == nil:
		err = nil // the file was replaced after all
	case err == nil:
		err = fmt.Errorf("what was kept before is removed, since policies or pods have changed: %w", failed)
	default:
		err = errors.Join(err, failed)
	}
	return size, drops, left, err
}

// replace replaces the file by one with objs, unless the file was removed since w.drops was drops.
func (w *Writer) replace(objs *kube.Objects, at time.Time, drops int) (size int64, err error) {
	beside := w.Path + ".new"
	// What stands there is of an agent that was killed, or of somebody else who would own what is written to it.
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	if size, err = encode(f, w.Owner, w.Kinds, objs, w.most); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Chtimes(beside, at, at)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.drops == drops {
		err = os.Rename(beside, w.Path)
	} else {
		_ = os.Remove(beside)
	}
	if err != nil {
		return 0, fmt.Errorf("keep the cluster's objects: %w", err)
	}
	return size, nil
}
