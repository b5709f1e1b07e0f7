package manifests

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
)

// file is the last known state of a file.
type file struct {
	stamp   stamp
	content content
	objects kube.Objects
	failed  string // the error that was reported last for this file; "" while the file is good
	parsed  bool   // objects hold a version without mistakes, not necessarily the last one
}

// stamp tells one version of a file from another without reading the file.
type stamp struct {
	size     int64
	modified time.Time
	inode    uint64
}

// content tells one version of a file's text from another without keeping the text. The zero content belongs to no
// text, not even to an empty one.
type content struct {
	size int
	sum  [sha256.Size]byte
}

// reading is the result of reading a file.
type reading struct {
	content content
	same    bool // content is the known one; nothing was parsed
	objects kube.Objects
	err     error
}

// readFile parses a file, unless its content is the known one.
func readFile(path string, known content) reading {
	data, err := os.ReadFile(path)
	if err != nil {
		return reading{content: known, err: fmt.Errorf("read manifests: %w", err)}
	}
	r := reading{content: content{len(data), sha256.Sum256(data)}}
	if r.content == known {
		r.same = true
		return r
	}
	r.objects, r.err = codec.Decode(path, data)
	return r
}

// take updates f with the result of reading it. It reports whether the objects have changed, and returns an error
// that has not been reported yet.
func (f *file) take(r reading) (changed bool, err error) {
	f.content = r.content
	switch {
	case r.same:
		return false, nil
	case r.err == nil:
		keepEqual(&r.objects, &f.objects)
		f.objects, f.parsed, f.failed = r.objects, true, ""
		return true, nil
	case !f.parsed:
		f.objects = r.objects // the best there is
	}
	if r.err.Error() == f.failed {
		return false, nil
	}
	f.failed = r.err.Error()
	return false, r.err
}

// keepEqual replaces objects in now by the equal ones in old, so that objects that have not changed keep their
// pointers.
func keepEqual(now, old *kube.Objects) {
	if now.Len() > manyChanges {
		return // comparing would cost as much as it saves
	}
	known := map[kube.Ref]kube.Object{}
	for obj := range old.All() {
		known[kube.RefOf(obj)] = obj
	}
	*now = now.Map(func(obj kube.Object) kube.Object {
		if same := known[kube.RefOf(obj)]; same != nil && reflect.DeepEqual(same, obj) {
			return same
		}
		return obj
	})
}

// tree is what is known of a directory of manifests. It is not safe for concurrent use.
type tree struct {
	dir   string
	files map[string]*file // by path
	// linked is set when some file is a symlink. Its target may change without an event for the symlink's name.
	linked bool
	// changed is set when the objects have changed since it was last cleared.
	changed   bool
	joined    joined
	published []*corev1.Node // the agents' Nodes; nil when they must be gathered again
}

// scan brings t up to date with the directory, and returns the new errors. It reads a file when its stamp has
// changed, or when the file is in dirty: two writes within one tick of the file system's clock leave the same stamp.
func (t *tree) scan(dirty map[string]bool) []error {
	var paths []string
	linked := false
	for _, dir := range []string{t.dir, filepath.Join(t.dir, StatusDir)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !(dir != t.dir && errors.Is(err, fs.ErrNotExist)) {
			return []error{fmt.Errorf("read manifests: %w", err)} // the known files are not gone for that reason
		}
		for _, e := range entries {
			if isManifest(e.Name()) {
				paths = append(paths, filepath.Join(dir, e.Name()))
				linked = linked || e.Type()&fs.ModeSymlink != 0
			}
		}
	}
	t.linked = linked
	seen := make(map[string]bool, len(paths))
	for _, path := range paths {
		seen[path] = true
	}
	for path := range t.files {
		if !seen[path] {
			t.forget(path)
		}
	}
	return t.refresh(paths, dirty)
}

// look brings t up to date at the paths in dirty. It scans the directory when those paths do not tell everything.
func (t *tree) look(dirty map[string]bool) []error {
	var paths []string
	for path := range dirty {
		if t.linked || t.concernsMore(path) {
			return t.scan(dirty)
		}
		if isManifest(filepath.Base(path)) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return t.refresh(paths, dirty)
}

// concernsMore reports whether an event at path may concern files of other names, as when a folder or a symlink
// appears.
func (t *tree) concernsMore(path string) bool {
	status := filepath.Join(t.dir, StatusDir)
	if dir := filepath.Dir(path); path == status || dir != t.dir && dir != status {
		return true
	}
	info, err := os.Lstat(path)
	return err == nil && !info.Mode().IsRegular()
}

// refresh stats the files at paths, reads those that may have changed, several at once, and takes the results in the
// order of paths.
func (t *tree) refresh(paths []string, dirty map[string]bool) (errs []error) {
	if t.files == nil {
		t.files = map[string]*file{}
	}
	var due []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || info.IsDir() {
			t.forget(path)
			continue
		}
		f := t.files[path]
		if f == nil {
			f = &file{}
			t.files[path] = f
		} else if !dirty[path] && f.stamp == stampOf(info) {
			continue
		}
		f.stamp = stampOf(info)
		due = append(due, path)
	}
	read := make([]reading, len(due))
	parallel(len(due), func(i int) { read[i] = readFile(due[i], t.files[due[i]].content) })
	for i, path := range due {
		f := t.files[path]
		old := f.objects
		changed, err := f.take(read[i])
		if err != nil {
			errs = append(errs, err)
		}
		if changed {
			t.note(path, old, f.objects)
		}
	}
	return errs
}

// parallel calls f for every number from 0 to n-1, on all processors.
func parallel(n int, f func(i int)) {
	var next atomic.Int64
	var done sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		done.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	done.Wait()
}

// forget drops a file that does not exist, if it was known.
func (t *tree) forget(path string) {
	if f := t.files[path]; f != nil {
		delete(t.files, path)
		t.note(path, f.objects, kube.Objects{})
	}
}

// note records that the objects of a file have changed.
func (t *tree) note(path string, old, now kube.Objects) {
	t.changed = true
	if t.isStatus(path) {
		t.published = nil
	} else {
		t.joined.replace(old, now)
	}
}

// ready reports whether every file of the user has been parsed without mistakes at least once.
func (t *tree) ready() bool {
	for path, f := range t.files {
		if !f.parsed && !t.isStatus(path) {
			return false
		}
	}
	return true
}

func (t *tree) isStatus(path string) bool {
	return t.dir != "" && filepath.Dir(path) == filepath.Join(t.dir, StatusDir)
}

// parts returns the objects of the user's files, in the order of the files' names.
func (t *tree) parts() []kube.Objects {
	var parts []kube.Objects
	for _, path := range slices.Sorted(maps.Keys(t.files)) {
		if !t.isStatus(path) {
			parts = append(parts, t.files[path].objects)
		}
	}
	return parts
}

// status returns the Nodes that agents published.
func (t *tree) status() []*corev1.Node {
	if t.published != nil {
		return t.published
	}
	var paths []string
	for path := range t.files {
		if t.isStatus(path) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	t.published = []*corev1.Node{}
	for _, path := range paths {
		t.published = append(t.published, t.files[path].objects.Nodes...)
	}
	return t.published
}

// objects returns the snapshot of the directory.
func (t *tree) objects() (kube.Objects, error) {
	objs, err := t.joined.objects(t.parts)
	if err != nil {
		return objs, err
	}
	return t.joined.layers.over(objs, t.status()), nil
}
