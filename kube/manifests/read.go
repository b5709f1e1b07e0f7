package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// StatusDir is the folder of a directory in which the agents publish their Nodes.
const StatusDir = "status"

// Read gives the objects of files and directories, merged and sorted. Of a directory it takes *.yaml, *.yml and *.json, not
// those in folders below it, except that status/ is laid over the Nodes. The error joins all mistakes in all files.
func Read(paths ...string) (kube.Objects, error) {
	var parts []kube.Objects
	var status []*corev1.Node
	var errs []error
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read manifests: %w: expected a YAML file or a directory of them", err))
			continue
		}
		var t tree
		if info.IsDir() {
			t = tree{dir: path}
			errs = append(errs, t.scan(nil)...)
		} else {
			f, err := parseFile(path)
			t = tree{files: map[string]*file{path: &f}}
			errs = append(errs, err)
		}
		parts = append(parts, t.parts()...)
		status = append(status, t.status()...)
	}
	all, err := kube.Merge(parts...)
	return overlay(all, status), errors.Join(append(errs, err)...)
}

// file is a parsed file as it was last seen.
type file struct {
	stamp   stamp
	data    []byte
	objects kube.Objects
	failed  string // the error that was reported last for this file, "" when it is good
	parsed  bool   // objects hold a version without mistakes, not necessarily the last one
}

// stamp tells one version of a file from another without reading it.
type stamp struct {
	size     int64
	modified time.Time
	inode    uint64
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") { // editors' and our own temporary files
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func parseFile(path string) (file, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return file{}, fmt.Errorf("read manifests: %w", err)
	}
	objects, err := Parse(path, data)
	return file{data: data, objects: objects, parsed: err == nil}, err
}

// tree is what is known of a directory of manifests. Only one goroutine may use it.
type tree struct {
	dir   string
	files map[string]*file // by path
	// changed is set when the objects are no longer those that were there when it was cleared.
	changed bool
}

// scan brings t up to date with the directory and gives the new errors. A file is read when its stamp has changed or when it
// is in dirty: two writes within one tick of the file system's clock leave the same stamp.
func (t *tree) scan(dirty map[string]bool) []error {
	var errs []error
	seen := map[string]bool{}
	for _, dir := range []string{t.dir, filepath.Join(t.dir, StatusDir)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !(dir != t.dir && errors.Is(err, fs.ErrNotExist)) {
			return append(errs, fmt.Errorf("read manifests: %w", err)) // what was there is not gone for that
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); isManifest(e.Name()) && t.refresh(path, dirty[path], &errs) {
				seen[path] = true
			}
		}
	}
	known := len(t.files)
	maps.DeleteFunc(t.files, func(path string, _ *file) bool { return !seen[path] })
	t.changed = t.changed || len(t.files) < known
	return errs
}

// refresh looks at one file and reports whether it exists.
func (t *tree) refresh(path string, dirty bool, errs *[]error) bool {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return false
	}
	if t.files == nil {
		t.files = map[string]*file{}
	}
	f := t.files[path]
	if f == nil {
		f = &file{}
		t.files[path] = f
	} else if !dirty && f.stamp == stampOf(info) {
		return true
	}
	f.stamp = stampOf(info)
	data, err := os.ReadFile(path)
	if err == nil {
		if bytes.Equal(data, f.data) && (f.parsed || f.failed != "") {
			return true
		}
		f.data = data
		var objects kube.Objects
		if objects, err = Parse(path, data); err == nil {
			f.objects, f.parsed, f.failed = objects, true, ""
			t.changed = true
			return true
		}
		if !f.parsed {
			f.objects = objects // the best there is
		}
	}
	if err.Error() != f.failed {
		f.failed = err.Error()
		*errs = append(*errs, err)
	}
	return true
}

// ready reports whether every file of the user has been parsed without mistakes at some time.
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

// parts gives the objects of the user's files, in the order of their names.
func (t *tree) parts() []kube.Objects {
	var parts []kube.Objects
	for _, path := range slices.Sorted(maps.Keys(t.files)) {
		if !t.isStatus(path) {
			parts = append(parts, t.files[path].objects)
		}
	}
	return parts
}

// status gives the Nodes that agents published.
func (t *tree) status() []*corev1.Node {
	var list []*corev1.Node
	for _, path := range slices.Sorted(maps.Keys(t.files)) {
		if t.isStatus(path) {
			list = append(list, t.files[path].objects.Nodes...)
		}
	}
	return list
}

// overlay lays published Nodes over those of the same name: annotations, conditions by type, and addresses when the Node was
// written without.
func overlay(objs kube.Objects, published []*corev1.Node) kube.Objects {
	if len(published) == 0 {
		return objs
	}
	objs.Nodes = slices.Clone(objs.Nodes)
	for i, n := range objs.Nodes {
		for _, p := range published {
			if p.Name == n.Name {
				objs.Nodes[i] = overlayNode(objs.Nodes[i], p)
			}
		}
	}
	return objs
}

func overlayNode(n, p *corev1.Node) *corev1.Node {
	n = n.DeepCopy()
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	maps.Copy(n.Annotations, p.Annotations)
	for _, c := range p.Status.Conditions {
		i := slices.IndexFunc(n.Status.Conditions, func(known corev1.NodeCondition) bool { return known.Type == c.Type })
		if i < 0 {
			n.Status.Conditions = append(n.Status.Conditions, c)
		} else {
			n.Status.Conditions[i] = c
		}
	}
	if len(n.Status.Addresses) == 0 {
		n.Status.Addresses = slices.Clone(p.Status.Addresses)
	}
	return n
}
