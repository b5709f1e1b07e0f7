package manifests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"tapestry.dev/tapestry/kube"
)

// Options of Watch. The zero value is usable.
type Options struct {
	// Debounce is how long the directory must be quiet before it is read, 0 for 5 ms. A directory that is never quiet
	// is read after ten times that. There is no wait when the only change is that a hidden file was renamed to a
	// manifest: such a file is complete.
	Debounce time.Duration
	// OnError, if set, is called once for every new mistake, by Watch's own goroutine. A file with a mistake keeps
	// its last objects.
	OnError func(error)
}

const (
	defaultDebounce = 5 * time.Millisecond
	// emptyPatience is how long a file must have been empty before Watch believes it. An editor that writes in place
	// truncates the file first, and nothing tells when it has finished.
	emptyPatience = 100 * time.Millisecond
)

// Watch calls deliver with the objects of a directory, as Read returns them, once at the start and after every
// change. It blocks until ctx is done, and calls deliver from its own goroutine. Changes gather while deliver works,
// so a slow receiver gets fewer snapshots, and always the latest. Nothing is delivered before every file of the user
// has been without mistakes once. Watch fails when the directory cannot be watched.
func Watch(ctx context.Context, dir string, o Options, deliver func(kube.Objects)) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer events.Close()
	if err := events.Add(dir); err != nil {
		return fmt.Errorf("watch manifests: %w: expected a directory", err)
	}
	w := watcher{
		events: events, options: o, deliver: deliver,
		tree: tree{dir: filepath.Clean(dir)}, status: filepath.Join(dir, StatusDir), dirty: map[string]bool{},
	}
	w.options.Debounce = cmp.Or(o.Debounce, defaultDebounce)
	return w.run(ctx)
}

type watcher struct {
	events  *fsnotify.Watcher
	options Options
	deliver func(kube.Objects)

	tree      tree
	status    string          // path of the status folder
	dirty     map[string]bool // paths that events named since the last scan
	lost      bool            // events may be missing in dirty
	rough     bool            // a file that dirty names may still be being written
	source    string          // the path that the last event renamed away; "" after any other event
	emptied   time.Time       // since when a file has been empty and waits for content; zero when none does
	delivered bool
	conflict  string // the error of the last merge that was reported
}

func (w *watcher) run(ctx context.Context) error {
	w.lost = true
	w.scan()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.patience():
			w.scan()
		case e, ok := <-w.events.Events:
			if !ok {
				return errors.New("watch manifests: the file system notifier has ended")
			}
			w.note(e)
			w.settle(ctx)
			w.scan()
		case err := <-w.events.Errors:
			w.report(fmt.Errorf("watch manifests: %w", err))
			w.lost = true // the directory tells what the events would have told
			w.scan()
		}
	}
}

// patience returns a channel that fires when it is time to believe that a file is empty.
func (w *watcher) patience() <-chan time.Time {
	if w.emptied.IsZero() {
		return nil
	}
	return time.After(time.Until(w.emptied.Add(emptyPatience)))
}

// note records the path of an event. It ignores files that are not manifests, such as those that a writer is about to
// rename, unless a manifest may depend on them.
func (w *watcher) note(e fsnotify.Event) {
	path, source := filepath.Clean(e.Name), w.source
	w.source = ""
	if e.Has(fsnotify.Rename) {
		w.source = path
	}
	manifest := isManifest(filepath.Base(path))
	if !manifest && !w.tree.linked && !w.tree.concernsMore(path) {
		return
	}
	w.dirty[path] = true
	// The kernel reports the two halves of a rename in direct succession.
	moved := e.Has(fsnotify.Create) && source != "" && !isManifest(filepath.Base(source))
	w.rough = w.rough || !manifest || !moved || w.tree.linked
}

// settle waits until no event has come for Debounce, or until all changed files are known to be complete.
func (w *watcher) settle(ctx context.Context) {
	if len(w.dirty) > 0 && !w.rough {
		return
	}
	limit := time.NewTimer(10 * w.options.Debounce)
	defer limit.Stop()
	quiet := time.NewTimer(w.options.Debounce)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-quiet.C:
			return
		case e, ok := <-w.events.Events:
			if !ok {
				return
			}
			w.note(e)
			if len(w.dirty) > 0 && !w.rough {
				return
			}
			quiet.Reset(w.options.Debounce)
		}
	}
}

// scan reads what has changed, and delivers a snapshot.
func (w *watcher) scan() {
	// The status folder may appear later, and a new one needs a new watch. Adding a watch again costs nothing. The
	// watch is added before the folder is read, so that no change is missed in between.
	if err := w.events.Add(w.status); err != nil && !errors.Is(err, os.ErrNotExist) {
		w.report(fmt.Errorf("watch manifests: %w", err))
	}
	if w.waitForContent() {
		return
	}
	look := w.tree.look
	if w.lost {
		look = w.tree.scan
	}
	for _, err := range look(w.dirty) {
		w.report(err)
	}
	clear(w.dirty)
	w.lost, w.rough = false, false
	if w.delivered && !w.tree.changed || !w.delivered && !w.tree.ready() {
		return
	}
	objs, err := w.tree.objects()
	if err != nil {
		if err.Error() != w.conflict {
			w.conflict = err.Error()
			w.report(err)
		}
		return
	}
	w.conflict = ""
	w.delivered, w.tree.changed = true, false
	w.deliver(objs)
}

// waitForContent reports whether a file has just become empty, and should get some time to be filled.
func (w *watcher) waitForContent() bool {
	for path := range w.dirty {
		f := w.tree.files[path]
		if f == nil || f.content.size == 0 {
			continue
		}
		if info, err := os.Stat(path); err != nil || info.Size() > 0 {
			continue
		}
		if w.emptied.IsZero() {
			w.emptied = time.Now()
		}
		if time.Since(w.emptied) < emptyPatience {
			return true
		}
	}
	w.emptied = time.Time{}
	return false
}

func (w *watcher) report(err error) {
	if w.options.OnError != nil {
		w.options.OnError(err)
	}
}
